package gatewaytest

import (
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strconv"
	"strings"
	"time"

	"github.com/natforward/goforward/gatewaytest/quirks"
)

// maxMX is the maximum delay of a response in seconds, even if the search has a greater
// MX (UPnP Device Architecture 1.1, section 1.3.3).
const maxMX = 5

// searchTarget is a search target and the unique service name for it.
type searchTarget struct{ target, usn string }

// searchTargets returns the targets that the gateway announces: three for the root
// device, two for each other device, and one for each service (UPnP Device Architecture
// 1.1, section 1.2.2). In SSDP, the gateway uses only the types of the standard.
func (s *upnpServer) searchTargets() []searchTarget {
	all := []searchTarget{{"upnp:rootdevice", s.root.udn + "::upnp:rootdevice"}}
	add := func(udn, urn string) {
		urn = s.ssdpType(urn)
		all = append(all, searchTarget{urn, udn + "::" + urn})
	}
	for _, d := range s.root.all() {
		all = append(all, searchTarget{d.udn, d.udn})
		add(d.udn, d.typ)
		for _, v := range d.services {
			add(d.udn, v.typ)
		}
	}
	return all
}

// ssdpType returns the SSDP form of a type in the description.
func (s *upnpServer) ssdpType(urn string) string {
	urn = strings.Replace(urn, "urn:dslforum-org:", "urn:schemas-upnp-org:", 1)
	name, version := cutVersion(urn)
	if v := s.config.Search.Version; v != 0 && version > 1 || v > 1 && strings.Contains(urn, ":device:") {
		version = v
	}
	return name + ":" + strconv.Itoa(version)
}

// searchRequest is an M-SEARCH request.
type searchRequest struct {
	host, target string
	mx           int // 0: no MX header
}

// parseSearch parses a search (UPnP Device Architecture 1.1, section 1.3.2).
func parseSearch(raw []byte) (searchRequest, bool) {
	lines := strings.Split(string(raw), "\n")
	fields := strings.Fields(lines[0])
	if len(fields) != 3 || fields[0] != "M-SEARCH" || fields[1] != "*" || !strings.HasPrefix(fields[2], "HTTP/1.") {
		return searchRequest{}, false
	}
	var q searchRequest
	discover, ended := false, false
	for _, line := range lines[1:max(1, len(lines)-1)] { // the last part has no line end
		line = strings.TrimSuffix(line, "\r")
		name, value, _ := strings.Cut(line, ":")
		value = strings.TrimSpace(value)
		switch strings.ToUpper(name) {
		case "":
			ended = true
		case "HOST":
			q.host = value
		case "ST":
			q.target = value
		case "MAN":
			discover = value == `"ssdp:discover"`
		case "MX":
			q.mx, _ = strconv.Atoi(value)
		}
	}
	return q, discover && ended && q.target != ""
}

// multicast reports whether the HOST header of the search is a multicast address.
func (q searchRequest) multicast() bool {
	at, err := netip.ParseAddrPort(q.host)
	return err == nil && at.Addr().IsMulticast()
}

// receive handles an SSDP datagram and sends the responses.
func (s *upnpServer) receive(conn *net.UDPConn, from netip.AddrPort, raw []byte) {
	q := Request{Time: s.g.clock.now(), Service: serviceSSDP, Op: opOther, Source: from, Raw: raw}
	search, ok := parseSearch(raw)
	if ok {
		q.Op = opSearch
	}
	replies, fault := s.g.respondWith(q, func(int) [][]byte {
		if !ok || s.ignores(search, from) {
			return nil
		}
		return s.searchResponses(search, from)
	})
	s.g.record.add(q, len(replies) == 0)
	if len(replies) == 0 {
		return
	}
	delay := s.config.Search.Delay
	if mx := min(search.mx, maxMX); s.config.Search.Spread && mx > 0 {
		delay += rand.N(time.Duration(mx) * time.Second)
	}
	s.g.replyAfter(fault, delay, func() { s.reply(conn, from, replies) })
}

// reply sends the responses, from another port if Search.OtherPort is set.
func (s *upnpServer) reply(conn *net.UDPConn, to netip.AddrPort, replies [][]byte) {
	if s.config.Search.OtherPort {
		at := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr()
		other, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
		if err != nil {
			return
		}
		defer func() { _ = other.Close() }()
		conn = other
	}
	s.g.reply(conn, to, replies)
}

// ignores reports whether the search gets no response.
func (s *upnpServer) ignores(q searchRequest, from netip.AddrPort) bool {
	rules := s.config.Search
	switch {
	case q.multicast() && (rules.UnicastOnly || q.mx == 0): // a multicast search must have an MX header
		return true
	case !q.multicast() && rules.MulticastOnly:
		return true
	case rules.NoPort1900 && from.Port() == 1900:
		return true
	case rules.ConnectionOnly && !strings.Contains(q.target, ":WANIPConnection:") && !strings.Contains(q.target, ":WANPPPConnection:"):
		return true
	}
	return rules.NoIGD2 && strings.HasSuffix(q.target, ":InternetGatewayDevice:2")
}

// searchResponses returns the responses to a search.
func (s *upnpServer) searchResponses(q searchRequest, from netip.AddrPort) [][]byte {
	rules := s.config.Search
	var matched []searchTarget
	switch all := s.searchTargets(); {
	case q.target == "ssdp:all" && rules.FirstOnly:
		const wfa = "urn:schemas-wifialliance-org:device:WFADevice:1"
		matched = []searchTarget{{wfa, s.root.udn + "-wfa::" + wfa}}
	case q.target == "ssdp:all":
		matched = all
	default:
		for _, t := range all {
			if t.target == q.target {
				matched = append(matched, t)
			} else if compatibleType(t.target, q.target) {
				// The response to a search for a lower version has that version (section
				// 1.3.3).
				usn := strings.TrimSuffix(t.usn, t.target) + q.target
				matched = append(matched, searchTarget{q.target, usn})
			}
		}
	}
	if len(matched) == 0 {
		return nil
	}
	replies := append([][]byte(nil), rules.Garbage...)
	for _, t := range matched {
		b := s.searchResponse(t, from.Addr().Is6())
		for range 1 + min(max(rules.Duplicates, 0), maxDuplicates) {
			replies = append(replies, b)
		}
	}
	return replies
}

// searchResponse returns the response for a target, with the URL of the description
// (UPnP Device Architecture 1.1, section 1.3.3).
func (s *upnpServer) searchResponse(t searchTarget, v6 bool) []byte {
	rules := s.config.Search
	m := newSSDPMessage(choose(rules.NoReason, "HTTP/1.1 200", "HTTP/1.1 200 OK"), rules)
	m.add("CACHE-CONTROL", "max-age=1800")
	m.add("EXT", "")
	if at := s.location(v6); at != "" {
		m.add("LOCATION", at)
	}
	m.add("SERVER", serverName)
	m.add("ST", t.target)
	m.add("USN", t.usn)
	m.add("BOOTID.UPNP.ORG", fmt.Sprint(s.currentBootID()))
	m.add("CONFIGID.UPNP.ORG", "1")
	return m.bytes()
}

// location returns the LOCATION header: the URL of the description, unless a quirk
// changes it.
func (s *upnpServer) location(v6 bool) string {
	at := s.descriptionURL(choose(v6, 1, 0))
	if rewrite := s.config.Search.Location; rewrite != nil {
		at = rewrite(at)
	}
	return strings.NewReplacer("\r", "", "\n", "").Replace(at)
}

// currentBootID returns the BOOTID.
func (s *upnpServer) currentBootID() uint32 {
	s.g.mu.Lock()
	defer s.g.mu.Unlock()
	return s.bootID
}

// ssdpMessage builds an SSDP message with the quirks applied.
type ssdpMessage struct {
	b        strings.Builder
	eol, sep string
	quirks   quirks.Search
}

// newSSDPMessage starts a message with its first line.
func newSSDPMessage(first string, quirks quirks.Search) *ssdpMessage {
	m := &ssdpMessage{quirks: quirks}
	m.eol, m.sep = lineEnds(quirks.LFOnly, quirks.NoSpace)
	m.b.WriteString(first + m.eol)
	return m
}

// add writes a header.
func (m *ssdpMessage) add(name, value string) {
	m.b.WriteString(name + choose(value == "", ":", m.sep) + value + m.eol)
}

// bytes returns the message.
func (m *ssdpMessage) bytes() []byte {
	return []byte(m.b.String() + choose(m.quirks.NoBlankLine, "", m.eol))
}

// notify sends a notification for each device and service to Config.Notify, unless UPnP
// is down (UPnP Device Architecture 1.1, sections 1.2.2 to 1.2.4). The kind is
// ssdp:alive, ssdp:byebye or ssdp:update. An ssdp:update also contains the next BOOTID.
func (s *upnpServer) notify(kind string) {
	to := s.g.config.Notify
	if !s.g.supports(serviceUPnP) || !hasPort(to) {
		return
	}
	v6 := to.Addr().Is6()
	server := s.ssdp[choose(v6, len(s.ssdp)-1, 0)]
	s.g.mu.Lock()
	conn, bootID := server.conn, s.bootID
	s.g.mu.Unlock()
	if conn == nil {
		return
	}
	for _, t := range s.searchTargets() {
		m := newSSDPMessage("NOTIFY * HTTP/1.1", s.config.Search)
		m.add("HOST", to.String())
		if kind == "ssdp:alive" {
			m.add("CACHE-CONTROL", "max-age=1800")
			m.add("SERVER", serverName)
		}
		if at := s.location(v6); at != "" && kind != "ssdp:byebye" {
			m.add("LOCATION", at)
		}
		m.add("NT", t.target)
		m.add("NTS", kind)
		m.add("USN", t.usn)
		m.add("BOOTID.UPNP.ORG", fmt.Sprint(bootID))
		m.add("CONFIGID.UPNP.ORG", "1")
		if kind == "ssdp:update" {
			m.add("NEXTBOOTID.UPNP.ORG", fmt.Sprint(bootID+1))
		}
		s.g.record.count(func(s *Stats) { s.Notifications++ })
		_, _ = conn.WriteToUDPAddrPort(m.bytes(), to)
	}
}
