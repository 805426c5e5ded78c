"""Networks from descriptions: convolutions that are causal in time, blueprints, the discriminator, VGG16 features."""
