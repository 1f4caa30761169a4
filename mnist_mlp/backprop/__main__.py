from mnist_mlp.backprop.command import main

main()
