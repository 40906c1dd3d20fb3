package cli

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/natforward/goforward/reach/reflector"
)

// TestParseListen checks the values of --listen.
func TestParseListen(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"8099": ":8099", ":80": ":80", "127.0.0.1": "127.0.0.1:8099", "127.0.0.1:0": "127.0.0.1:0", "0.0.0.0:80": "0.0.0.0:80",
		"::1": "[::1]:8099", "[::1]": "[::1]:8099", "[::]:80": "[::]:80", "::": "[::]:8099", "fe80::1%eth0": "[fe80::1%eth0]:8099", "2001:db8::": "[2001:db8::]:8099",
	} {
		at, err := parseListen(text)
		got := at.String()
		if !at.Addr().IsValid() {
			got = fmt.Sprintf(":%d", at.Port())
		}
		if err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", text, got, err, want)
		}
	}
	for _, text := range []string{"", ":", "65536", ":65536", "example.net:80", "127.0.0.1:", "127.0.0.1:x", "224.0.0.1:80", "-1"} {
		if at, err := parseListen(text); err == nil || !strings.Contains(err.Error(), "ADDRESS:PORT") {
			t.Errorf("%q: %v, %v", text, at, err)
		}
	}
}

// TestParsePrefix checks the values of --trust-proxy, --allow and --deny.
func TestParsePrefix(t *testing.T) {
	t.Parallel()
	for text, want := range map[string]string{
		"127.0.0.1": "127.0.0.1/32", "10.1.2.3/8": "10.0.0.0/8", "2001:db8::1": "2001:db8::1/128", "fd00::/8": "fd00::/8", "::ffff:192.0.2.1": "192.0.2.1/32",
	} {
		if p, err := parsePrefix(text); err != nil || p.String() != want {
			t.Errorf("%q: %v, %v, want %s", text, p, err, want)
		}
	}
	for _, text := range []string{"", "10.0.0.0/33", "10/8", "example.net", "fe80::1%eth0", "fe80::%eth0/64", "::ffff:10.0.0.0/104"} {
		if p, err := parsePrefix(text); err == nil {
			t.Errorf("%q: %v", text, p)
		}
	}
}

// TestReflectErrors checks the messages and exit codes of a reflector that cannot start.
func TestReflectErrors(t *testing.T) {
	t.Parallel()
	used, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer used.Close()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	writeCertificate(t, cert, key, "one")
	_, otherKey := filepath.Join(dir, "other"), filepath.Join(dir, "other-key")
	writeCertificate(t, filepath.Join(dir, "other"), otherKey, "two")
	for _, tt := range []struct {
		args string
		code int
		want string
	}{
		{"--listen " + used.Addr().String(), exitOther, "cannot listen on " + used.Addr().String() + ": "},
		{"--listen " + used.Addr().String(), exitOther, "\n  → another program uses the port: name another one with --listen\n"},
		{"--listen 192.0.2.1:8099", exitOther, "\n  → 192.0.2.1 is not an address of this host\n"},
		{"--listen example.net:8099", exitUsage, "want ADDRESS:PORT"},
		{"--dial-from 192.0.2.1", exitUsage, "--dial-from 192.0.2.1 is not an address of this host"},
		{"--dial-from 0.0.0.0", exitUsage, "want the IP address of a host"},
		{"--dial-from 127.0.0.1 --dial-from 127.0.0.2", exitUsage, "want at most one address of each family"},
		{"--trust-proxy 0.0.0.0/0", exitUsage, "every host"},
		{"--trust-proxy example.net", exitUsage, "want a range of addresses"},
		{"--allow 10.0.0.0/33", exitUsage, "want a range of addresses"},
		{"--deny x", exitUsage, "want a range of addresses"},
		{"--cert " + cert, exitUsage, "--cert and --key belong together"},
		{"--key " + key, exitUsage, "--cert and --key belong together"},
		{"--cert " + cert + " --key " + filepath.Join(dir, "missing"), exitUsage, "--cert, --key: "},
		{"--cert " + cert + " --key " + dir, exitUsage, "is not a regular file"},
		{"--cert " + cert + " --key " + otherKey, exitUsage, "--cert, --key: tls: private key does not match"},
		{"--token-file " + filepath.Join(dir, "missing"), exitUsage, "--token-file: "},
		{"--token-file=", exitUsage, "--token-file names no file"},
		{"--cert= --key=", exitUsage, "--cert names no file"},
		{"--token-file " + dir, exitUsage, "is not a regular file"},
		{"-g 192.168.1.1", exitUsage, "reflect uses no gateway: --gateway has no meaning here"},
		{"8080", exitUsage, "reflect takes no arguments"},
	} {
		var stdout, stderr bytes.Buffer
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute) // if it serves
		code := newApp(&stdout, &stderr).run(ctx, append([]string{"reflect"}, strings.Fields(tt.args)...))
		cancel()
		if code != tt.code || stdout.Len() > 0 || !strings.Contains(stderr.String(), tt.want) {
			t.Errorf("%s: exit code %d, want %d; %q\n%s, want %q", tt.args, code, tt.code, &stdout, &stderr, tt.want)
		}
	}
}

// TestReadToken checks which files are accepted as a token.
func TestReadToken(t *testing.T) {
	t.Parallel()
	path := filepath.Join(t.TempDir(), "token")
	const token = "0123456789abcdef"
	for _, tt := range []struct {
		text  string
		mode  os.FileMode
		token string
		want  string // of the error or the warning
	}{
		{token, 0o600, token, ""},
		{token + "\r\n\n", 0o400, token, ""},
		{token, 0o440, token, ""},
		{token, 0o644, token, "Every user of this host can read or change the token: chmod 600 "},
		{token, 0o602, token, "Every user of this host"},
		{"", 0o600, "", "has 0 characters, want 16 to 256"},
		{token[1:], 0o600, "", "has 15 characters, want 16 to 256"},
		{strings.Repeat("x", 257), 0o600, "", "has 257 characters"},
		{strings.Repeat("x", 10000), 0o600, "", "want 16 to 256"},
		{token + " " + token, 0o600, "", "more than a token"},
		{token + "\n" + token, 0o600, "", "more than a token"},
		{token + "é", 0o600, "", "more than a token"},
	} {
		if err := os.WriteFile(path, []byte(tt.text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Chmod(path, tt.mode); err != nil {
			t.Fatal(err)
		}
		var stderr bytes.Buffer
		a := newApp(io.Discard, &stderr)
		a.settings.quiet = true
		got, err := a.readToken(path)
		text := stderr.String()
		if err != nil {
			text = err.Error()
		}
		if runtime.GOOS == "windows" && err == nil {
			tt.want = ""
		}
		if got != tt.token || (err == nil) != (tt.token != "") || !strings.Contains(text, tt.want) || tt.want == "" && text != "" {
			t.Errorf("%q, mode %o: %q, %v, %q", tt.text, tt.mode, got, err, &stderr)
		}
		_ = os.Chmod(path, 0o600)
	}
}

// writeCertificate writes a certificate for 127.0.0.1 with this name, and its key.
func writeCertificate(t *testing.T, certFile, keyFile, name string) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(1), DNSNames: []string{name}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)},
		NotBefore: time.Unix(0, 0), NotAfter: time.Date(2200, 1, 1, 0, 0, 0, 0, time.UTC),
	}
	cert, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	secret, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for path, block := range map[string]*pem.Block{certFile: {Type: "CERTIFICATE", Bytes: cert}, keyFile: {Type: "PRIVATE KEY", Bytes: secret}} {
		putFile(t, path, string(pem.EncodeToMemory(block)))
	}
}

// putFile writes a new file, as programs that renew certificates do.
func putFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path+".new", []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := os.Rename(path+".new", path); err != nil {
		t.Fatal(err)
	}
}

// TestCertificate checks that a renewed certificate is used without a restart, and that a broken file
// keeps the old one and is reported once.
func TestCertificate(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		dir := t.TempDir()
		certFile, keyFile := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
		writeCertificate(t, certFile, keyFile, "one")
		var reports []string
		c, err := newCertificate(certFile, keyFile, func(err error) { reports = append(reports, err.Error()) })
		if err != nil {
			t.Fatal(err)
		}
		expect := func(step, name string, n int) {
			t.Helper()
			got, err := c.get(nil)
			if err != nil || got.Leaf.DNSNames[0] != name || len(reports) != n {
				t.Errorf("%s: %v, %v, reports %q; want %s and %d reports", step, got.Leaf.DNSNames, err, reports, name, n)
			}
		}
		later := func() { time.Sleep(certCheckInterval) }
		expect("at first", "one", 0)
		writeCertificate(t, certFile, keyFile, "two")
		expect("at once", "one", 0)
		later()
		expect("renewed", "two", 0)
		putFile(t, certFile, "broken")
		later()
		expect("broken", "two", 1)
		later()
		expect("still broken", "two", 1)
		if err := os.Remove(keyFile); err != nil {
			t.Fatal(err)
		}
		later()
		expect("missing", "two", 2)
		later()
		expect("still missing", "two", 2)
		writeCertificate(t, certFile, keyFile, "three")
		later()
		expect("repaired", "three", 2)
		later()
		expect("unchanged", "three", 2)
		putFile(t, certFile, "broken")
		later()
		expect("broken again", "three", 3)
	})
}

// TestReportCounts checks that the counts are printed once an hour, and only if they have changed.
func TestReportCounts(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		var stderr bytes.Buffer
		a := newApp(io.Discard, &stderr)
		ctx, cancel := context.WithTimeout(t.Context(), 5*countInterval+time.Second)
		defer cancel()
		hour := 0
		a.reportCounts(ctx, time.Now(), func() reflector.Stats {
			hour++
			return reflector.Stats{Requests: []uint64{0, 5, 5, 6, 6}[hour-1]}
		})
		text := stderr.String()
		if hour != 5 || strings.Count(text, "\n") != 2 || !strings.Contains(text, ": 5 requests, of which ") || !strings.Contains(text, ": 6 requests, of which ") {
			t.Errorf("%d hours:\n%s", hour, text)
		}
	})
}

// TestReflect runs a reflector with and without TLS. It serves until it is interrupted, and then exits
// with 0.
func TestReflect(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	cert, key := filepath.Join(dir, "cert"), filepath.Join(dir, "key")
	writeCertificate(t, cert, key, "one")
	pool := x509.NewCertPool()
	text, err := os.ReadFile(cert)
	if err != nil || !pool.AppendCertsFromPEM(text) {
		t.Fatal(err)
	}
	for _, tt := range []struct {
		scheme, message string
		args            []string
	}{
		{"http", "Reflector ready, with plain HTTP without encryption. Ctrl-C ends it. On another host: goforward verify PORT --via http://127.0.0.1:", nil},
		{"https", "Reflector ready, with HTTP with TLS. Ctrl-C ends it. On another host: goforward verify PORT --via https://HOST:", []string{"--cert", cert, "--key", key}},
		{"http", "goforward verify PORT --via URL, with the URL of the proxy\n", []string{"--trust-proxy", "127.0.0.9"}},
	} {
		ctx, interrupt := context.WithCancel(t.Context())
		in, out := io.Pipe()
		var stderr bytes.Buffer // read it only after the command has ended
		code := make(chan int, 1)
		go func() {
			code <- newApp(out, &stderr).run(ctx, append([]string{"reflect", "--listen", "127.0.0.1:0"}, tt.args...))
			_ = out.Close()
		}()
		line, err := bufio.NewReader(in).ReadString('\n')
		at, parseErr := netip.ParseAddrPort(strings.TrimSpace(line))
		if err != nil || parseErr != nil {
			interrupt()
			t.Fatalf("%q, %v, exit code %d\n%s", line, err, <-code, &stderr)
		}
		transport := &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}}
		request, err := http.NewRequestWithContext(ctx, http.MethodGet, tt.scheme+"://"+at.String()+"/v1/ip", nil)
		if err != nil {
			t.Fatal(err)
		}
		response, err := transport.RoundTrip(request)
		if err != nil {
			t.Error(err)
		} else if body, err := io.ReadAll(response.Body); err != nil || response.StatusCode != http.StatusOK || string(body) != "{\"address\":\"127.0.0.1\"}\n" {
			t.Errorf("%s: %s, %q, %v", tt.scheme, response.Status, body, err)
		} else {
			_ = response.Body.Close()
		}
		transport.CloseIdleConnections()
		interrupt()
		if got := <-code; got != exitDone {
			t.Errorf("exit code %d", got)
		}
		if text := stderr.String(); !strings.Contains(text, tt.message) || !strings.Contains(text, ": 1 requests, of which 0 were refused") {
			t.Errorf("%s", text)
		}
		_ = in.Close()
	}
}
