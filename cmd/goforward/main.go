// Goforward makes the gateway forward ports to this host: see goforward --help.
package main

import (
	"os"

	"github.com/natforward/goforward/cmd/goforward/internal/cli"
)

func main() { os.Exit(cli.Main(os.Args[1:])) }
