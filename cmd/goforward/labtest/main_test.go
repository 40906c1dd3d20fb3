package labtest

import (
	"flag"
	"testing"

	_ "github.com/natforward/goforward/internal/holders/unshared"
	"github.com/natforward/goforward/internal/lab"
)

// TestMain runs eight scenarios in parallel. They mostly wait for lifetimes and timeouts,
// so more of them run at once than there are processors. An explicit -parallel takes
// precedence.
func TestMain(m *testing.M) {
	_ = flag.Set("test.parallel", "8")
	lab.Main(m)
}
