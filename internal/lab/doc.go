// Package lab is a home network to test in: a real router on a real wire.
//
//	func TestMain(m *testing.M) { lab.Main(m) }     // the tests run in a world of their own
//	home := lab.Home(t, lab.Router{})               // lan — router with miniupnpd — wan
//	home.Reaches(t, home.Lan.Echo(t, "tcp", ":80"), external) // bytes from outside arrive
//
// # The world
//
// [Main] re-executes the test binary in user (unless root), pid, mount and
// network namespaces of its own. Nothing that happens there is seen by the
// machine, and when the test process ends, in whatever way, kill -9 and test
// timeouts included, the kernel ends all that it had started. t.Cleanup only
// keeps tests of one process apart.
//
// Where such a world cannot be made (another system than Linux, no user
// namespaces, a missing program) every test that asks for a lab is skipped with
// the reason; with GOFORWARD_LAB=require in the environment it fails.
//
// # Topologies
//
// [Home] is what most tests need:
//
//	lan 192.168.77.2 — switch — 192.168.77.1 router 45.45.45.1 — 45.45.45.2 wan
//
// Router.IPv6 gives all of them global addresses too. [HomeNet.Join] and
// [HomeNet.JoinOutside] add hosts, [HomeNet.SecondRouter] a second router of the same
// home, and [Row] puts a router behind another one.
//
// Others are built from [New], [Lab.Host], [Lab.Connect] and [Lab.Switch]:
//
//	l := lab.New(t)
//	a, b := l.Host("a"), l.Host("b")
//	l.Connect(a.Port("eth0", "10.0.0.1/24"), b.Port("eth0", "10.0.0.2/24"))
//
// # Running code in a host
//
// A namespace belongs to a thread and goroutines change threads, so the library
// under test runs in a process of its own: the test binary once more, started
// in the host's namespace to run a function that was registered with [Func].
//
//	var enable = lab.Func("enable", func(p *lab.Proc) {
//		var port uint16
//		p.Args(&port)
//		...
//		p.Send(m.External())
//		p.Receive(new(string)) // wait until the test says go on
//	})
//
//	proc := home.Lan.Start(t, enable, 8080)
//	var external netip.AddrPort
//	proc.Expect(&external)
//	proc.Send("stop")
//	proc.Wait()
//
// Other programs run by [Host.Exec], [Host.Run] and [Host.Command]. The test
// itself is the outside world: [Host.Dial], [Host.Listen] and
// [Host.ListenPacket] open sockets in a host's namespace from the test process.
//
// # What proves a mapping
//
// Only bytes that arrive: [HomeNet.Reaches] wants the answer of one certain
// echo server, [HomeNet.DoesNotReach] wants none although that server lives and
// the router can reach it.
package lab
