package cli

import (
	"bytes"
	"context"
	"errors"
	"testing"

	"github.com/natforward/goforward/gatewaytest"
)

// closedPipe is what stdout is once its reader has gone, from the first line on.
type closedPipe struct{}

func (closedPipe) Write([]byte) (int, error) { return 0, errors.New("broken pipe") }

// Where nobody reads the events any more, map --hold takes its mapping away.
func TestHoldWithoutReader(t *testing.T) {
	gw, err := gatewaytest.Start(gatewaytest.Config{})
	if err != nil {
		t.Fatal(err)
	}
	defer gw.Close()
	var stderr bytes.Buffer
	args := []string{"map", "8080", "--hold", "-g", gw.Addr().String(), "--announce", "127.0.0.1:0"}
	if code := Run(context.Background(), args, closedPipe{}, &stderr); code != 1 {
		t.Errorf("exit code %d\n%s", code, stderr.String())
	}
	if left := gw.Table(); len(left) != 0 {
		t.Errorf("the gateway has %v", left)
	}
}
