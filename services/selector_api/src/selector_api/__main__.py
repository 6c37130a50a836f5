from selector_api.main import main

main()
