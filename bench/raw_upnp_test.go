package bench

import (
	"bufio"
	"bytes"
	"context"
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

var ssdpGroup = netip.MustParseAddrPort("239.255.255.250:1900")

// rawUPnP takes the first device that answers, and no other is waited for.
func rawUPnP(to target) (attempt, error) { return rawMapping(to, false), nil }

// rawCareful asks all that goforward asks as well: whether the device is connected,
// whether somebody has the port, and whether the mapping is there.
func rawCareful(to target) (attempt, error) { return rawMapping(to, true), nil }

func rawMapping(to target, careful bool) attempt {
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
			external, err := rawMap(ctx, c, to, careful)
			return outcome{External: external, Way: "upnp"}, err
		},
		clean: func() { _ = rawUPnPUnmap(to) },
	}
}

func rawMap(ctx context.Context, c *rawHTTP, to target, careful bool) (netip.AddrPort, error) {
	key := fmt.Sprintf("<NewRemoteHost></NewRemoteHost><NewExternalPort>%d</NewExternalPort><NewProtocol>UDP</NewProtocol>", to.Port)
	if careful {
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
	if careful {
		if _, err := rawAction(ctx, c, "GetSpecificPortMappingEntry", key); err == nil {
			return netip.AddrPort{}, errors.New("the port is taken")
		}
	}
	_, err = rawAction(ctx, c, "AddPortMapping", key+fmt.Sprintf("<NewInternalPort>%d</NewInternalPort>"+
		"<NewInternalClient>%v</NewInternalClient><NewEnabled>1</NewEnabled>"+
		"<NewPortMappingDescription>bench</NewPortMappingDescription><NewLeaseDuration>%s</NewLeaseDuration>",
		to.Port, to.Self, seconds()))
	if err == nil && careful {
		_, err = rawAction(ctx, c, "GetSpecificPortMappingEntry", key)
	}
	return netip.AddrPortFrom(addr, to.Port), err
}

// rawUPnPUnmap knows where the lab's router has its description. A gateway of
// gatewaytest is the parent's, which takes its mappings away.
func rawUPnPUnmap(to target) error {
	if to.SSDP.IsValid() {
		return nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), cleaning)
	defer cancel()
	location, err := url.Parse(fmt.Sprintf("http://%v:5000/rootDesc.xml", to.Gateway))
	if err != nil {
		return err
	}
	c := &rawHTTP{host: location.Host}
	defer c.close()
	if err := rawDescribe(ctx, c, location); err != nil {
		return err
	}
	_, err = rawAction(ctx, c, "DeletePortMapping", fmt.Sprintf("<NewRemoteHost></NewRemoteHost>"+
		"<NewExternalPort>%d</NewExternalPort><NewProtocol>UDP</NewProtocol>", to.Port))
	return err
}

// rawSearch returns the location in the first answer.
func rawSearch(ctx context.Context, to target) (*url.URL, error) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: to.Self.AsSlice()})
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	asked := []netip.AddrPort{netip.AddrPortFrom(to.Gateway, ssdpGroup.Port()), ssdpGroup}
	if to.SSDP.IsValid() {
		asked = []netip.AddrPort{to.SSDP}
	}
	buf := make([]byte, 2048)
	for wait := 2 * time.Second; ctx.Err() == nil; wait *= 2 {
		for _, who := range asked {
			for version := 1; version <= 2; version++ {
				m := fmt.Sprintf("M-SEARCH * HTTP/1.1\r\nHOST: %v\r\nMAN: \"ssdp:discover\"\r\nMX: 1\r\n"+
					"ST: urn:schemas-upnp-org:device:InternetGatewayDevice:%d\r\n\r\n", who, version)
				if _, err := conn.WriteToUDPAddrPort([]byte(m), who); err != nil {
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

// rawDescribe finds out where actions go.
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
	answer, err := c.do(ctx, fmt.Sprintf("POST %s HTTP/1.1\r\nHost: %s\r\nContent-Type: text/xml; charset=\"utf-8\"\r\n"+
		"SOAPAction: \"%s#%s\"\r\nContent-Length: %d\r\n\r\n%s", c.control, c.host, c.service, action, len(body), body))
	if err != nil {
		return "", err
	}
	if m := newExternal.FindSubmatch(answer); m != nil {
		external = string(m[1])
	}
	return external, nil
}

// rawHTTP keeps its connection while the server does.
type rawHTTP struct {
	host string
	conn net.Conn
	in   *bufio.Reader

	service, control string // the type of the connection service, and where its actions go
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
