"""Seeds to certified tasks: domain grammars, the oracle, the gates, the corpus."""
