package labtest

import (
	"flag"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// The scenarios wait for lifetimes to pass and for silence much more than they
// work, so more of them run at once than there are processors. An explicit
// -parallel wins.
func TestMain(m *testing.M) {
	_ = flag.Set("test.parallel", "8")
	lab.Main(m)
}
