from mnist_mlp.report.command import main

main()
