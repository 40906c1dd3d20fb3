// Package unshared gives the process of a test a registry of holders of its own. Test
// packages import it for this effect, so that they do not use the registry of the user, and
// leave no files.
package unshared

import (
	"os"

	"github.com/natforward/goforward/internal/holders"
)

// The default registry keeps its file open, and needs neither its name nor its directory.
// Windows cannot remove an open file, so a directory for temporary files remains there.
var _ = func() error {
	const variable = "XDG_RUNTIME_DIR"
	dir, err := os.MkdirTemp("", "goforward-test-*")
	if err != nil {
		panic(err)
	}
	before, isSet := os.LookupEnv(variable)
	if err := os.Setenv(variable, dir); err != nil {
		panic(err)
	}
	_, _ = holders.Default() // without it, tests run without a registry
	if isSet {
		err = os.Setenv(variable, before)
	} else {
		err = os.Unsetenv(variable)
	}
	_ = os.RemoveAll(dir)
	return err
}()
