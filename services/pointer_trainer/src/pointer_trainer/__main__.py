from pointer_trainer.main import main

main()
