package remote_test

func serverMain(args []string) int { return 1 }
