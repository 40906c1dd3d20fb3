package lab_test

import (
	"os"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// needEnv names a program that the lab shall believe it needs.
const needEnv = "LAB_TEST_NEED"

func TestMain(m *testing.M) {
	if name := os.Getenv(needEnv); name != "" {
		lab.NeedProgram(name)
	}
	lab.Main(m)
}
