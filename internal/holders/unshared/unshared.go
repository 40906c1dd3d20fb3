// Package unshared gives the process of a test a registry of holders of its own. Test
// packages import it for this effect, so that they do not use the registry of the user, and
// leave no files.
package unshared

import (
	"errors"
	"os"

	"github.com/natforward/goforward/internal/holders"
)

// The default registry keeps its files open, and needs neither their names nor their directory.
// Windows cannot remove an open file, so a directory for temporary files remains there.
var _ = func() error {
	dir, err := os.MkdirTemp("", "goforward-test-*")
	if err != nil {
		panic(err)
	}
	var restore []func() error
	for _, name := range []string{"XDG_RUNTIME_DIR", "TMPDIR", "TMP"} {
		if before, isSet := os.LookupEnv(name); isSet {
			restore = append(restore, func() error { return os.Setenv(name, before) })
		} else {
			restore = append(restore, func() error { return os.Unsetenv(name) })
		}
		if err := os.Setenv(name, dir); err != nil {
			panic(err)
		}
	}
	_, _ = holders.Default() // without it, tests run without a registry
	for _, f := range restore {
		err = errors.Join(err, f())
	}
	_ = os.RemoveAll(dir)
	return err
}()
