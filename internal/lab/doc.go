// Package lab builds a home network for tests, with a real router and real network
// interfaces.
//
//	func TestMain(m *testing.M) { lab.Main(m) }     // the tests run in namespaces of their own
//	home := lab.Home(t, lab.Router{})               // lan — router with miniupnpd — wan
//	home.Reaches(t, home.Lan.Echo(t, "tcp", ":80"), external) // bytes from outside arrive
//
// # Namespaces
//
// [Main] re-executes the test binary in new user (unless root), pid, mount and network
// namespaces. The tests cannot change the network of the machine. When the test process
// ends, the kernel terminates all processes that it started, even after kill -9 or a test
// timeout. t.Cleanup only separates the tests of one process.
//
// If these namespaces cannot be created (a system other than Linux, no user namespaces, a
// missing program), every test that calls [New] or [Home] is skipped with the reason.
// With GOFORWARD_LAB=require in the environment, it fails.
//
// # Topologies
//
// Most tests need [Home]:
//
//	lan 192.168.77.2 — switch — 192.168.77.1 router 45.45.45.1 — 45.45.45.2 wan
//
// Router.IPv6 also gives all of them global IPv6 addresses. [HomeNet.Join] and
// [HomeNet.JoinOutside] add hosts, [HomeNet.SecondRouter] adds a second router to the
// home, [HomeNet.SecondUplink] connects the host to the internet a second time, and
// [DoubleNAT] puts a router behind another one.
//
// Build other topologies from [New], [Lab.Host], [Lab.Connect] and [Lab.Switch]:
//
//	l := lab.New(t)
//	a, b := l.Host("a"), l.Host("b")
//	l.Connect(a.Port("eth0", "10.0.0.1/24"), b.Port("eth0", "10.0.0.2/24"))
//
// # Running code in a host
//
// A network namespace belongs to a thread, and goroutines move between threads. So the
// library under test runs in its own process. This process is another run of the test
// binary, started in the host's namespace. It runs a function that was registered with
// [Func].
//
//	var enable = lab.Func("enable", func(p *lab.Proc) {
//		var port uint16
//		p.Args(&port)
//		...
//		p.Send(m.External())
//		p.Receive(new(string)) // wait until the test sends a message
//	})
//
//	proc := home.Lan.Start(t, enable, 8080)
//	var external netip.AddrPort
//	proc.Expect(&external)
//	proc.Send("stop")
//	proc.Wait()
//
// [Host.Exec], [Host.Run] and [Host.Command] run other programs. The test itself takes
// the part of the other hosts: [Host.Dial], [Host.Listen] and [Host.ListenPacket] open
// sockets in a host's namespace from the test process.
//
// [Host.Capture] records the packets of an interface.
//
// # How to verify a mapping
//
// Only bytes that arrive prove a mapping. [HomeNet.Reaches] requires a reply from one
// particular echo server. [HomeNet.DoesNotReach] requires that no reply arrives, although
// the server is running and the router can reach it.
package lab
