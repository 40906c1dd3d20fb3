package proof

import (
	"testing"
	"time"

	"github.com/natforward/goforward/internal/lab"
)

// patience bounds what must happen.
const patience = 30 * time.Second

func TestMain(m *testing.M) { lab.Main(m) }
