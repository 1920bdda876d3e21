"""What trains and prunes at once: optimizers and callbacks behind the methods of kind *train*."""
