"""The command line: `main` holds the application, each command has a file, `job` is the streaming job behind two of them."""
