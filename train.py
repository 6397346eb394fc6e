"""`python -m aa_flax.train`, for a clone."""

from aa_flax.train import main

if __name__ == "__main__":
    main()
