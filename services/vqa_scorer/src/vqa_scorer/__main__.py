from vqa_scorer.main import main

main()
