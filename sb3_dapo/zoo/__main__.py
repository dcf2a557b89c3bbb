from sb3_dapo.zoo.cli import main

if __name__ == "__main__":
    main()
