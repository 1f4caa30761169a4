from mnist_mlp.tensorboard.serve import main

main()
