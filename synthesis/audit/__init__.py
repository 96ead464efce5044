"""The gates on anybody's tasks: Harbor directories, tau2-bench domains, general-agent corpora and our own."""
