package bench

import (
	"bufio"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"strings"
	"time"
)

const port5351 = 5351

// request5351 sends a request until it receives a response, as RFC 6886 section 3.1
// requires. The response must have at least minLength bytes.
func request5351(ctx context.Context, conn net.Conn, request []byte, minLength int) ([]byte, error) {
	response := make([]byte, 1100)
	for wait := 250 * time.Millisecond; ctx.Err() == nil; wait *= 2 {
		if _, err := conn.Write(request); err != nil {
			return nil, err
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		n, err := conn.Read(response)
		if isTimeout(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n < minLength || response[0] != request[0] || response[1] != request[1]|0x80 || response[2] != 0 || response[3] != 0 {
			return nil, fmt.Errorf("unexpected response %x", response[:n])
		}
		return response[:n], nil
	}
	return nil, context.Cause(ctx)
}

func dial5351(to target) (net.Conn, error) {
	return net.Dial("udp", netip.AddrPortFrom(to.Gateway, port5351).String())
}

func natpmpMap(port uint16, seconds uint32) []byte {
	b := []byte{0, 1, 0, 0}
	b = binary.BigEndian.AppendUint16(b, port)
	if seconds == 0 {
		port = 0
	}
	b = binary.BigEndian.AppendUint16(b, port)
	return binary.BigEndian.AppendUint32(b, seconds)
}

func rawNATPMP(to target) (attempt, error) {
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			conn, err := dial5351(to)
			if err != nil {
				return outcome{}, err
			}
			defer conn.Close()
			response, err := request5351(ctx, conn, []byte{0, 0}, 12)
			if err != nil {
				return outcome{}, err
			}
			addr := netip.AddrFrom4([4]byte(response[8:12]))
			response, err = request5351(ctx, conn, natpmpMap(to.Port, uint32(lifetime.Seconds())), 16)
			if err != nil {
				return outcome{}, err
			}
			return outcome{External: netip.AddrPortFrom(addr, binary.BigEndian.Uint16(response[10:12])), Protocol: "natpmp"}, nil
		},
		clean: func() { rawNATPMPUnmap(to) },
	}, nil
}

func rawNATPMPUnmap(to target) {
	conn, err := dial5351(to)
	if err != nil {
		return
	}
	defer conn.Close()
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	_, _ = request5351(ctx, conn, natpmpMap(to.Port, 0), 16)
}

// pcpMap returns a MAP request without options (RFC 6887, sections 7.1 and 11.1).
func pcpMap(to target, nonce [12]byte, seconds uint32) []byte {
	b := []byte{2, 1, 0, 0}
	b = binary.BigEndian.AppendUint32(b, seconds)
	self := to.Self.As16()
	b = append(b, self[:]...)
	b = append(b, nonce[:]...)
	b = append(b, 17, 0, 0, 0) // UDP
	b = binary.BigEndian.AppendUint16(b, to.Port)
	b = binary.BigEndian.AppendUint16(b, to.Port)
	unspecified := netip.IPv4Unspecified().As16()
	return append(b, unspecified[:]...)
}

func rawPCP(to target) (attempt, error) {
	var nonce [12]byte
	_, _ = rand.Read(nonce[:])
	request := func(ctx context.Context, seconds uint32) (outcome, error) {
		conn, err := dial5351(to)
		if err != nil {
			return outcome{}, err
		}
		defer conn.Close()
		response, err := request5351(ctx, conn, pcpMap(to, nonce, seconds), 60)
		if err != nil {
			return outcome{}, err
		}
		addr := netip.AddrFrom16([16]byte(response[44:60])).Unmap()
		return outcome{External: netip.AddrPortFrom(addr, binary.BigEndian.Uint16(response[42:44])), Protocol: "pcp"}, nil
	}
	return attempt{
		run: func(ctx context.Context) (outcome, error) { return request(ctx, uint32(lifetime.Seconds())) },
		clean: func() {
			ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
			defer cancel()
			_, _ = request(ctx, 0)
		},
	}, nil
}

var ssdpGroup = netip.MustParseAddrPort("239.255.255.250:1900")

// rawUPnP uses the first device that responds, and does not wait for other devices.
func rawUPnP(to target) (attempt, error) { return rawMapping(to, false), nil }

// rawUPnPAll sends the same requests as goforward. In addition to rawUPnP, it checks whether
// the device is connected, whether the port is in use, and whether the mapping exists.
func rawUPnPAll(to target) (attempt, error) { return rawMapping(to, true), nil }

func rawMapping(to target, all bool) attempt {
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			location, err := rawSearch(ctx, to)
			if err != nil {
				return outcome{}, err
			}
			c := &rawHTTP{host: location.Host}
			defer c.close()
			if err := rawDescribe(ctx, c, location); err != nil {
				return outcome{}, err
			}
			external, err := rawMap(ctx, c, to, all)
			return outcome{External: external, Protocol: "upnp"}, err
		},
		clean: func() { _ = rawUPnPUnmap(to) },
	}
}

func rawMap(ctx context.Context, c *rawHTTP, to target, all bool) (netip.AddrPort, error) {
	key := rawKey(to)
	if all {
		if _, err := rawAction(ctx, c, "GetStatusInfo", ""); err != nil {
			return netip.AddrPort{}, err
		}
	}
	text, err := rawAction(ctx, c, "GetExternalIPAddress", "")
	if err != nil {
		return netip.AddrPort{}, err
	}
	addr, err := netip.ParseAddr(text)
	if err != nil {
		return netip.AddrPort{}, err
	}
	if all {
		if _, err := rawAction(ctx, c, "GetSpecificPortMappingEntry", key); err == nil {
			return netip.AddrPort{}, errors.New("the port is in use")
		}
	}
	err = rawAdd(ctx, c, to)
	if err == nil && all {
		_, err = rawAction(ctx, c, "GetSpecificPortMappingEntry", key)
	}
	return netip.AddrPortFrom(addr, to.Port), err
}

// rawKey returns the arguments that identify the mapping.
func rawKey(to target) string {
	return fmt.Sprintf("<NewRemoteHost></NewRemoteHost><NewExternalPort>%d</NewExternalPort><NewProtocol>UDP</NewProtocol>", to.Port)
}

func rawAdd(ctx context.Context, c *rawHTTP, to target) error {
	_, err := rawAction(ctx, c, "AddPortMapping", rawKey(to)+fmt.Sprintf("<NewInternalPort>%d</NewInternalPort>"+
		"<NewInternalClient>%v</NewInternalClient><NewEnabled>1</NewEnabled>"+
		"<NewPortMappingDescription>bench</NewPortMappingDescription><NewLeaseDuration>%s</NewLeaseDuration>",
		to.Port, to.Self, seconds()))
	return err
}

func rawDelete(ctx context.Context, c *rawHTTP, to target) error {
	_, err := rawAction(ctx, c, "DeletePortMapping", rawKey(to))
	return err
}

// rawUPnPUnmap deletes the mapping. The location of the description is fixed on the router
// of the lab. On a gateway of gatewaytest, the parent process deletes the mappings.
func rawUPnPUnmap(to target) error {
	if to.SSDP.IsValid() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleanupTimeout)
	defer cancel()
	location, err := url.Parse(routerDescription(to.Gateway))
	if err != nil {
		return err
	}
	c := &rawHTTP{host: location.Host}
	defer c.close()
	if err := rawDescribe(ctx, c, location); err != nil {
		return err
	}
	return rawDelete(ctx, c, to)
}

// rawSearch returns the location in the first response.
func rawSearch(ctx context.Context, to target) (*url.URL, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: to.Self.AsSlice()})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	destinations := []netip.AddrPort{netip.AddrPortFrom(to.Gateway, ssdpGroup.Port()), ssdpGroup}
	if to.SSDP.IsValid() {
		destinations = []netip.AddrPort{to.SSDP}
	}
	buf := make([]byte, 2048)
	for wait := 2 * time.Second; ctx.Err() == nil; wait *= 2 {
		for _, dst := range destinations {
			for version := 1; version <= 2; version++ {
				m := fmt.Sprintf("M-SEARCH * HTTP/1.1\r\nHOST: %v\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n"+
					"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:%d\r\n\r\n", dst, version)
				if _, err := conn.WriteToUDPAddrPort([]byte(m), dst); err != nil {
					return nil, err
				}
			}
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		n, err := conn.Read(buf)
		if isTimeout(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		response, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(buf[:n])), nil)
		if err != nil {
			return nil, err
		}
		response.Body.Close()
		return response.Location()
	}
	return nil, context.Cause(ctx)
}

func isTimeout(err error) bool {
	var nerr net.Error
	return errors.As(err, &nerr) && nerr.Timeout()
}

var connectionService = regexp.MustCompile(
	`(?s)<serviceType>(urn:schemas-upnp-org:service:WANIPConnection:\d)</serviceType>.*?<controlURL>([^<]+)</controlURL>`)

// rawDescribe reads the description, and stores the service type and the control URL in c.
func rawDescribe(ctx context.Context, c *rawHTTP, location *url.URL) error {
	body, err := c.do(ctx, "GET "+location.RequestURI()+" HTTP/1.1\r\nHost: "+location.Host+"\r\n\r\n")
	if err != nil {
		return err
	}
	m := connectionService.FindSubmatch(body)
	if m == nil {
		return fmt.Errorf("no connection service in %q", body)
	}
	at, err := location.Parse(string(m[2]))
	if err != nil {
		return err
	}
	c.service, c.control = string(m[1]), at.RequestURI()
	return nil
}

var newExternal = regexp.MustCompile(`<NewExternalIPAddress>([^<]*)<`)

func rawAction(ctx context.Context, c *rawHTTP, action, arguments string) (external string, err error) {
	body := fmt.Sprintf(`<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/" `+
		`s:encodingStyle="http://schemas.xmlsoap.org/soap/encoding/"><s:Body><u:%s xmlns:u="%s">%s</u:%s></s:Body></s:Envelope>`,
		action, c.service, arguments, action)
	response, err := c.do(ctx, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n"+
		"SOAPAction: \"%s#%s\"\r\nContent-Length: %d\r\n\r\n%s", c.control, c.host, c.service, action, len(body), body))
	if err != nil {
		return "", err
	}
	if m := newExternal.FindSubmatch(response); m != nil {
		external = string(m[1])
	}
	return external, nil
}

// rawHTTP is an HTTP client that keeps its connection open until the server closes it.
type rawHTTP struct {
	host string
	conn net.Conn
	in   *bufio.Reader

	service, control string // the type and the control URL of the connection service
}

func (c *rawHTTP) close() {
	if c.conn != nil {
		c.conn.Close()
		c.conn = nil
	}
}

func (c *rawHTTP) do(ctx context.Context, request string) ([]byte, error) {
	if c.conn == nil {
		conn, err := new(net.Dialer).DialContext(ctx, "tcp", c.host)
		if err != nil {
			return nil, err
		}
		c.conn, c.in = conn, bufio.NewReader(conn)
	}
	deadline, _ := ctx.Deadline()
	_ = c.conn.SetDeadline(deadline)
	if _, err := io.WriteString(c.conn, request); err != nil {
		return nil, err
	}
	method, _, _ := strings.Cut(request, " ")
	response, err := http.ReadResponse(c.in, &http.Request{Method: method})
	if err != nil {
		return nil, err
	}
	defer response.Body.Close()
	body, err := io.ReadAll(response.Body)
	if response.Close {
		c.close()
	}
	if err == nil && response.StatusCode != http.StatusOK {
		err = fmt.Errorf("%s: %s", response.Status, body)
	}
	return body, err
}
