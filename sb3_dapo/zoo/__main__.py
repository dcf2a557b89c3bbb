from sb3_dapo.cli import main

if __name__ == "__main__":
    main()
