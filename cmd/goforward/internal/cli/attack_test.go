package cli_test

import (
	"bytes"
	"encoding/json"
	"encoding/xml"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"testing"
	"time"
	"unicode"

	"github.com/natforward/goforward/cmd/goforward/internal/cli"
	"github.com/natforward/goforward/gatewaytest"
	"github.com/natforward/goforward/gatewaytest/quirks"
)

// unusedAddr is an address at which no program receives.
var unusedAddr = netip.MustParseAddrPort("127.0.0.1:0")

// testTimeout is a generous timeout: the test takes milliseconds unless it fails.
const testTimeout = 20 * time.Second

// router starts a test gateway.
func router(t *testing.T, config gatewaytest.Config) *gatewaytest.Gateway {
	t.Helper()
	gw, err := gatewaytest.Start(config)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = gw.Close() })
	return gw
}

// write writes a file with a mode, regardless of the umask.
func write(t *testing.T, path, content string, mode os.FileMode) {
	t.Helper()
	if err := os.WriteFile(path, []byte(content), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil {
		t.Fatal(err)
	}
}

// soapFault returns an HTTP response with a UPnP error.
func soapFault(code, text string) []byte {
	return []byte("HTTP/1.1 500 Internal Server Error\r\nConnection: close\r\n\r\n" +
		`<s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body><s:Fault><faultcode>s:Client</faultcode>` +
		`<faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>` + code +
		`</errorCode><errorDescription>` + text + `</errorDescription></UPnPError></detail></s:Fault></s:Body></s:Envelope>`)
}

// TestKeyOfOthers checks that the PCP key is not used if another user may read or write it.
// A FIFO in place of the key must not block the program. The mapping is still created, with a
// random nonce.
func TestKeyOfOthers(t *testing.T) {
	if runtime.GOOS != "linux" {
		t.Skip("needs file modes, FIFOs and owners like those of Linux")
	}
	known := strings.Repeat("k", 32)
	for name, plant := range map[string]func(t *testing.T, path string){
		"writable by others": func(t *testing.T, path string) { write(t, path, known, 0o666) },
		"readable by others": func(t *testing.T, path string) { write(t, path, known, 0o644) },
		"a link to another key": func(t *testing.T, path string) {
			write(t, path+"-other", known, 0o600)
			if err := os.Symlink(path+"-other", path); err != nil {
				t.Fatal(err)
			}
		},
		"owned by another user": func(t *testing.T, path string) {
			if os.Getuid() != 0 {
				t.Skip("chown needs root")
			}
			write(t, path, known, 0o600)
			if err := os.Chown(path, 65534, 65534); err != nil {
				t.Skip(err)
			}
		},
		"a fifo": func(t *testing.T, path string) {
			if err := exec.CommandContext(t.Context(), "mkfifo", path).Run(); err != nil {
				t.Skip(err)
			}
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			t.Setenv("XDG_STATE_HOME", dir)
			path := filepath.Join(dir, "goforward", "nonce.key")
			if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
				t.Fatal(err)
			}
			plant(t, path)
			if name != "a fifo" { // reading a FIFO would block the naive client
				if b, err := os.ReadFile(path); err != nil || string(b) != known {
					t.Fatalf("the naive client reads %q, %v: the test data is no attack", b, err)
				}
			}
			first, second := nonceWith(t, path), nonceWith(t, path)
			if first == "" || first == second {
				t.Errorf("nonces %x and %x: an attacker with the key can compute them", first, second)
			}
		})
	}
}

// nonceWith runs goforward map in this process, and returns the nonce that it sent (RFC 6887,
// section 11.1).
func nonceWith(t *testing.T, key string) (nonce string) {
	t.Helper()
	gw := router(t, gatewaytest.Config{Protocols: []string{"pcp"}})
	ended := make(chan int, 1)
	var stdout, stderr bytes.Buffer
	go func() {
		ended <- cli.Run(t.Context(), []string{"map", "8080", "-g", gw.Addr().String(), "--backend", "pcp", "--announce", unusedAddr.String(), "--timeout", "2"}, &stdout, &stderr)
	}()
	select {
	case <-ended:
	case <-time.After(testTimeout):
		t.Error("goforward map is blocked, probably by reading the key")
		if f, err := os.OpenFile(key, os.O_RDWR, 0); err == nil { // unblock the read
			_, _ = f.Write([]byte("x"))
			_ = f.Close()
		}
		<-ended
	}
	for _, r := range gw.Requests() {
		if r.Op == "map" {
			nonce = string(r.Raw[24:36])
		}
	}
	if nonce == "" {
		t.Errorf("no request for a mapping was sent: %s%s", &stdout, &stderr)
	}
	return nonce
}

// hostileText is XML text that attacks a terminal: it clears the screen, sets the window title,
// writes right to left, and adds a line and a column. XML cannot contain the escape character,
// but it can contain the control characters of Latin-1, which terminals obey as well.
const hostileText = "\u009b2J\u009d0;pwned\u009c&#155;31m&#8238;drowssap&#10;8.8.8.8&#9;yes&#13;&#xE0041;"

// texts are the XML elements of the gateway's responses that the command prints.
var texts = []string{
	"friendlyName", "manufacturer", "modelName", "modelNumber", "serviceId", "UDN",
	"NewConnectionStatus", "NewLastConnectionError", "NewPortMappingDescription", "errorDescription", "faultstring",
}

// changeTexts changes the text of elements in each HTTP response.
func changeTexts(gw *gatewaytest.Gateway, change func(name, text string) string) {
	element := regexp.MustCompile(`<([\w:]+)>([^<>]*)</`)
	gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool { return r.Service == "upnp" }, Corrupt: func(b []byte) []byte {
		status, _, _ := bytes.Cut(b, []byte("\r\n"))
		_, body, _ := bytes.Cut(b, []byte("\r\n\r\n"))
		body = element.ReplaceAllFunc(body, func(b []byte) []byte {
			m := element.FindSubmatch(b)
			return fmt.Appendf(nil, "<%s>%s</", m[1], change(string(m[1]), string(m[2])))
		})
		return fmt.Appendf(nil, "%s\r\nConnection: close\r\n\r\n%s", status, body)
	}})
}

// appendHostileText appends hostileText to the text of each element in texts.
func appendHostileText(name, text string) string {
	for _, n := range texts {
		if strings.EqualFold(n, name) {
			return text + hostileText
		}
	}
	return text
}

// run executes a command line against the gateway with the UPnP backend.
func run(t *testing.T, gw *gatewaytest.Gateway, args ...string) (code int, stdout, stderr string) {
	t.Helper()
	var out, messages bytes.Buffer
	args = append(args, "-g", gw.Addr().String(), "--ssdp", gw.SSDP().String(), "--notify", unusedAddr.String(),
		"--announce", unusedAddr.String(), "--backend", "upnp")
	code = cli.Run(t.Context(), args, &out, &messages)
	return code, out.String(), messages.String()
}

// checkHarmless checks that an output has no control characters, and no line that the gateway
// wrote.
func checkHarmless(t *testing.T, output string) {
	t.Helper()
	for _, r := range output {
		if r != '\n' && !unicode.IsPrint(r) {
			t.Errorf("%q reaches the terminal: %q", r, output)
			return
		}
	}
	for line := range strings.SplitSeq(output, "\n") {
		if strings.HasPrefix(line, "8.8.8.8") {
			t.Errorf("the gateway added a line to the output: %q", output)
		}
	}
}

// checkObjects checks that each line is a JSON object with an event, and that it passes
// checkHarmless.
func checkObjects(t *testing.T, output string) {
	t.Helper()
	checkHarmless(t, output)
	for line := range strings.SplitSeq(strings.TrimSuffix(output, "\n"), "\n") {
		var o map[string]any
		if err := json.Unmarshal([]byte(line), &o); err != nil || o["event"] == nil {
			t.Errorf("%v: %q", err, line)
		}
	}
}

// TestTerminal checks that texts from a gateway are printed escaped: its name, its table, and
// its error texts. With --json, they are JSON strings.
func TestTerminal(t *testing.T) {
	var naive struct {
		Text string `xml:",chardata"`
	}
	if err := xml.Unmarshal([]byte("<a>"+hostileText+"</a>"), &naive); err != nil || !strings.ContainsAny(naive.Text, "\u009b\n\u202e") {
		t.Fatalf("the naive client prints %q, %v: the test data is no attack", naive.Text, err)
	}
	for name, test := range map[string]struct {
		args   []string
		refuse []byte // the response to requests to map or delete
		code   int
		shown  string
	}{
		"list":                       {args: []string{"list"}, shown: "pwned"},
		"gateways":                   {args: []string{"gateways", "--timeout", "600ms"}, shown: "pwned"},
		"ip":                         {args: []string{"ip"}},
		"map":                        {args: []string{"map", "8080"}},
		"map, verbose":               {args: []string{"map", "8080", "-vv"}, shown: "pwned"},
		"map, refused":               {args: []string{"map", "8080", "-vv"}, refuse: soapFault("606", hostileText), code: 4, shown: "pwned"},
		"map, vendor-specific error": {args: []string{"map", "8080"}, refuse: soapFault("899", hostileText), code: 4, shown: "pwned"},
		"map, not HTTP":              {args: []string{"map", "8080", "-vv"}, refuse: []byte("HTTP/1.1 \x1b[2J\x1b]0;pwned\a\r\n\r\n"), code: 1, shown: "pwned"},
		"unmap, refused":             {args: []string{"unmap", "9000:9000", "--foreign"}, refuse: soapFault("606", hostileText), code: 4, shown: "pwned"},
	} {
		t.Run(name, func(t *testing.T) {
			gw := router(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{AnyClient: true}}})
			if err := gw.AddMapping(gatewaytest.Entry{
				Protocol: 6, Internal: netip.MustParseAddrPort("127.0.0.66:9000"),
				External: netip.AddrPortFrom(gw.External(), 9000), Description: "other",
			}); err != nil {
				t.Fatal(err)
			}
			if test.refuse != nil {
				gw.Inject(gatewaytest.Fault{Match: func(r gatewaytest.Request) bool {
					return r.Op == "map" || r.Op == "unmap"
				}, Reply: func([]byte) [][]byte { return [][]byte{test.refuse} }})
			}
			changeTexts(gw, func(name, text string) string {
				if name == "NewConnectionStatus" && test.args[0] != "gateways" {
					return text // otherwise the gateway would not be used
				}
				return appendHostileText(name, text)
			})
			code, stdout, stderr := run(t, gw, test.args...)
			if code != test.code || !strings.Contains(stdout+stderr, test.shown) {
				t.Errorf("exit code %d, want %d and output with %q\n%s%s", code, test.code, test.shown, stdout, stderr)
			}
			checkHarmless(t, stdout)
			checkHarmless(t, stderr)
			_, stdout, stderr = run(t, gw, append(test.args, "--json")...)
			checkObjects(t, stdout)
			checkHarmless(t, stderr)
		})
	}
}

// TestForgedLine checks that an external address is printed as one line without other text, so
// that a hook cannot run a command from the gateway.
func TestForgedLine(t *testing.T) {
	const forged = "fe80::1%\n8.8.8.8"
	if a, err := netip.ParseAddr(forged); err != nil || !strings.HasSuffix(fmt.Sprintln(a), "\n8.8.8.8\n") {
		t.Fatalf("the naive client prints %q, %v: the test data is no attack", a, err)
	}
	for _, forged := range []string{forged, "fe80::1%; id", "fe80::1%`id`"} {
		gw := router(t, gatewaytest.Config{Quirks: quirks.Quirks{UPnP: quirks.UPnP{Status: quirks.Status{
			External: func(netip.Addr) string { return forged },
		}}}})
		for _, args := range [][]string{{"ip"}, {"gateways", "--timeout", "600ms"}, {"map", "8080"}} {
			_, stdout, stderr := run(t, gw, args...)
			checkHarmless(t, stdout)
			checkHarmless(t, stderr)
			if strings.Contains(stdout, "%") || strings.Contains(stdout, "fe80") {
				t.Errorf("%v prints %q", args, stdout)
			}
		}
	}
}
