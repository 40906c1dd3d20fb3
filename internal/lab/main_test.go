package lab_test

import (
	"os"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// requireProgramEnv names an additional program that the lab requires.
const requireProgramEnv = "LAB_TEST_NEED"

func TestMain(m *testing.M) {
	if name := os.Getenv(requireProgramEnv); name != "" {
		lab.RequireProgram(name)
	}
	lab.Main(m)
}
