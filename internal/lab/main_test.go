package lab_test

import (
	"os"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// needEnv names a program that the lab shall believe it needs.
const requireProgramEnv = "LAB_TEST_NEED"

func TestMain(m *testing.M) {
	if name := os.Getenv(requireProgramEnv); name != "" {
		lab.RequireProgram(name)
	}
	lab.Main(m)
}
