package lab_test

import (
	"fmt"
	"net/netip"
	"os"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// subprocessEnv selects what TestSubprocess does. Most of its modes fail.
const subprocessEnv = "LAB_TEST_VICTIM"

var (
	fails         = lab.Func("fails", func(p *lab.Proc) { p.Fatal("the test must fail") })
	panics        = lab.Func("panics", func(*lab.Proc) { panic("boom") })
	returnsAtOnce = lab.Func("returns at once", func(*lab.Proc) {})
	exitsNonZero  = lab.Func("exits non-zero", func(*lab.Proc) { os.Exit(7) })
	sleeper       = lab.Func("sleeper", func(p *lab.Proc) { p.Send("asleep"); select {} })
)

// TestSubprocess is run by other tests, in a separate test process.
func TestSubprocess(t *testing.T) {
	mode := os.Getenv(subprocessEnv)
	if mode == "" {
		t.Skip("only other tests run this test")
	}
	lab.Scenario(t, "subprocess "+mode)
	switch mode {
	case "pass":
		lab.New(t).Host("a")
	case "fail":
		lab.New(t).Host("a").Exec(t, "false")
	case "fatal":
		var v int
		lab.New(t).Host("a").Start(t, fails, nil).Expect(&v)
	case "panic":
		lab.New(t).Host("a").Start(t, panics, nil).Wait()
	case "no message":
		var v int
		lab.New(t).Host("a").Start(t, returnsAtOnce, nil).Expect(&v)
	case "not reading":
		proc := lab.New(t).Host("a").Start(t, fails, nil)
		for range 1000 { // until the pipe is broken
			proc.Send(strings.Repeat("x", 4096))
		}
	case "exit":
		lab.New(t).Host("a").Start(t, exitsNonZero, nil).Wait()
	case "reached":
		home := lab.Home(t, lab.Router{})
		echo := home.Lan.Echo(t, "tcp", ":80")
		home.DoesNotReach(t, echo, mapTCP(t, home, home.Lan))
	case "not reached":
		home := lab.Home(t, lab.Router{})
		echo := home.Lan.Echo(t, "udp", ":80")
		home.Reaches(t, echo, netip.AddrPortFrom(home.External, 80))
	case "no server":
		home := lab.Home(t, lab.Router{})
		noServer := lab.Echo{Network: "tcp", Addr: netip.AddrPortFrom(home.Lan.Addr(), 80), Token: "x"}
		home.DoesNotReach(t, noServer, netip.AddrPortFrom(home.External, 80))
	case "hang":
		home := lab.Home(t, lab.Router{})
		echo := home.Lan.Echo(t, "tcp", ":80")
		home.Reaches(t, echo, mapTCP(t, home, home.Lan))
		var message string
		home.Lan.Start(t, sleeper, nil).Expect(&message)
		fmt.Println("READY")
		select {}
	}
}
