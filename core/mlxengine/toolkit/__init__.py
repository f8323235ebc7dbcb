"""What plugins on mlx share. Its modules need the mlx that such plugins bring; core does not import them."""
