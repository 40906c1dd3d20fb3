package labtest

import (
	"fmt"
	"io"
	"net"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// strangerProgram answers every search, before the gateway does, with locations
// that it has been told, and announces them too. Whoever connects to it gets a
// body without an end.
var strangerProgram = lab.Func("stranger", func(p *lab.Proc) {
	var locations []string
	p.Args(&locations)
	pc, err := net.ListenMulticastUDP("udp4", nil, &net.UDPAddr{IP: net.IPv4(239, 255, 255, 250), Port: 1900})
	if err != nil {
		p.Fatal(err)
	}
	for _, port := range []string{":80", ":5000", ":8888"} {
		ln, err := net.Listen("tcp", port)
		if err != nil {
			p.Fatal(err)
		}
		go serveEndlessly(ln)
	}
	p.Send("ready")
	buf := make([]byte, 2048)
	for {
		_, from, err := pc.ReadFrom(buf)
		if err != nil {
			p.Fatal(err)
		}
		for i, location := range locations {
			const gateway = "urn:schemas-upnp-org:device:InternetGatewayDevice:1"
			_, _ = pc.WriteTo(fmt.Appendf(nil, "HTTP/1.1 200 OK\r\nLOCATION: %s\r\nST: %s\r\nUSN: uuid:%d::%s\r\nBOOTID.UPNP.ORG: 1\r\n\r\n",
				location, gateway, i, gateway), from)
		}
	}
})

func serveEndlessly(ln net.Listener) {
	for {
		conn, err := ln.Accept()
		if err != nil {
			return
		}
		go func() {
			defer func() { _ = conn.Close() }()
			_, err := io.WriteString(conn, "HTTP/1.1 200 OK\r\n\r\n<root>")
			for err == nil {
				_, err = io.WriteString(conn, "<device><deviceList>")
			}
		}()
	}
}

// A stranger in the home answers searches with lies. Nobody is contacted on its
// word but itself, and that a few times; the router's device is found all the
// same, and quickly.
func TestStranger(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "upnp: a stranger answers the search with lying locations")
	home := lab.Home(t, upnpOnly)
	stranger := home.Join("stranger", "192.168.77.66/24")
	victim := home.Join("victim", "192.168.77.67/24")
	locations := []string{
		"http://192.168.77.67/rootDesc.xml", "http://127.0.0.1:8888/secret", "http://[::1]:8888/secret",
		"http://45.45.45.2/rootDesc.xml", "http://router.example/rootDesc.xml", "https://192.168.77.67/rootDesc.xml",
		"http://user:password@192.168.77.67/", "http://192.168.77.67:80@192.168.77.66/", "http://0.0.0.0:8888/", "http://[fe80::1%3]/",
		"ftp://192.168.77.67/", "http://192.168.77.255/", "http://239.255.255.250/", "",
	}
	for i := range 200 { // and more than anybody would look at
		locations = append(locations, fmt.Sprintf("http://192.168.77.66:5000/%d", i))
	}
	attacked := counts(t, victim, "input", "attacked", `tcp flags syn / syn,ack`)
	outside := counts(t, home.Wan, "input", "outside", `tcp dport 80 tcp flags syn / syn,ack`)
	secrets := counts(t, home.Lan, "input", "secrets", `iifname "lo" tcp dport 8888`)
	asked := counts(t, stranger, "input", "asked", `tcp flags syn / syn,ack`)
	var ready string
	stranger.Start(t, strangerProgram, locations).Expect(&ready)

	echo := home.Lan.Echo(t, "tcp", ":8080")
	for range 3 {
		f := newForwarder(t, home.Lan, config{})
		got := f.do(call{Op: "enable", Options: []option{tcp(8080)}})
		m, _ := f.enabled(got)
		t.Logf("granted after %v", got.Took)
		if m.Gateway.Addr() != home.Gateway || m.External != at(home, 8080) {
			t.Errorf("%+v", m.state)
		}
		home.Reaches(t, echo, m.External)
		f.close()
	}
	for what, c := range map[string]count{"the victim": attacked, "a host outside": outside, "this host": secrets} {
		if n := c.now(t); n != 0 {
			t.Errorf("%s was contacted %d times on a stranger's word", what, n)
		}
	}
	t.Logf("the stranger was asked %d times", asked.now(t))
	if n := asked.now(t); n > 3*2 {
		t.Errorf("the stranger was asked %d times", n)
	}
}
