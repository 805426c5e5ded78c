"""Networks from blueprints, whose layers are causal in time; the discriminator; VGG16."""
