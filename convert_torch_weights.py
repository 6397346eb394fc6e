"""`python -m aa_flax.convert`, for a clone."""

from aa_flax.convert import main

if __name__ == "__main__":
    main()
