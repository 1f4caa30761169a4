from mnist_mlp.benchmark import command  # by this name a contender's process finds it too

command.main()
