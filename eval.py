"""`python -m aa_flax.eval`, for a clone."""

from aa_flax.eval import main

if __name__ == "__main__":
    main()
