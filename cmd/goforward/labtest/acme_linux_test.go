package labtest

import (
	"crypto/tls"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

const acmeDomain = "home.example.org"

// TestACME checks that an ACME client behind the router gets a certificate by HTTP-01 if it
// runs under goforward run, and does not get one without it. The validation authority connects
// to port 80 of the router's external address. RFC 8555 section 8.3 permits no other port.
func TestACME(t *testing.T) {
	t.Parallel()
	t.Run("with run", func(t *testing.T) {
		t.Parallel()
		lab.Scenario(t, "cli: run, an ACME client gets a certificate by HTTP-01")
		home := lab.Home(t, lab.Router{})
		client, files := acmeClient(t, home)
		p := execute(t, home.Lan, nil, append([]string{"run", "-p", "80", "--"}, client...)...)
		p.wantExit(0)
		wantRules(t, home, 0)
		pair, err := tls.LoadX509KeyPair(files+".crt", files+".key")
		if err != nil {
			t.Fatal(err)
		}
		if err := pair.Leaf.VerifyHostname(acmeDomain); err != nil {
			t.Error(err)
		}
		if !strings.HasPrefix(pair.Leaf.Issuer.CommonName, "Pebble ") {
			t.Errorf("the issuer is %v", pair.Leaf.Issuer)
		}
	})
	t.Run("without run", func(t *testing.T) {
		t.Parallel()
		lab.Scenario(t, "cli: without run, an ACME client gets no certificate")
		home := lab.Home(t, lab.Router{})
		client, files := acmeClient(t, home)
		out, err := home.Lan.Run(t.Context(), client[0], client[1:]...)
		if err == nil || !strings.Contains(err.Error(), "urn:ietf:params:acme:error:connection") {
			t.Errorf("%v, want that the authority cannot connect\n%s", err, out)
		}
		if _, err := os.Stat(files + ".crt"); err == nil {
			t.Error("the client has a certificate")
		}
	})
}

// acmeClient starts an ACME server in the wan host. It returns the command line of a client that
// requests a certificate, and the path of the client's files without their extensions.
func acmeClient(t *testing.T, home *lab.HomeNet) (args []string, files string) {
	t.Helper()
	program := unpackedProgram(t, "acme", "lego")
	server := startACMEServer(t, home.Wan, home.External)
	dir := t.TempDir()
	return []string{
		"env", "LEGO_CA_CERTIFICATES=" + server.roots, program, "--path", dir, "--server", server.directory,
		"--accept-tos", "--email", "user@example.org", "--domains", acmeDomain, "--http", "run",
	}, filepath.Join(dir, "certificates", acmeDomain)
}

// acmeServer is a running pebble.
type acmeServer struct {
	directory string // the URL for clients
	roots     string // the file with the certificate of its HTTPS server
}

// startACMEServer starts pebble in the host, with a DNS server that has this address for all
// names. Pebble does not wait between its steps and rejects no valid nonce, so that the test
// does not depend on chance.
func startACMEServer(t *testing.T, host *lab.Host, addr netip.Addr) acmeServer {
	t.Helper()
	pebble, dns := unpackedProgram(t, "acme", "pebble"), unpackedProgram(t, "acme", "pebble-challtestsrv")
	const resolver = "127.0.0.1:8053"
	startProgram(t, host, nil, dns, "-dns01", resolver, "-defaultIPv4", addr.String(), "-defaultIPv6", "",
		"-http01", "", "-https01", "", "-tlsalpn01", "", "-management", "127.0.0.1:8055")

	listen := netip.AddrPortFrom(host.Addr(), 14000).String()
	dir := t.TempDir()
	certificate, key := createServerCertificate(t, dir, host.Addr())
	config, err := json.Marshal(map[string]any{"pebble": map[string]any{
		"listenAddress": listen, "certificate": certificate, "privateKey": key, "httpPort": 80, "tlsPort": 443,
	}})
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(dir, "config.json")
	if err := os.WriteFile(file, config, 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"PEBBLE_VA_NOSLEEP=1", "PEBBLE_WFE_NONCEREJECT=0", "PEBBLE_AUTHZREUSE=0"}
	startProgram(t, host, env, pebble, "-config", file, "-dnsserver", resolver, "-strict")
	for _, address := range []string{resolver, listen} {
		waitUntil(t, maxWait, "no server at "+address, func() bool {
			conn, err := host.Dial(t.Context(), "tcp", address)
			if err != nil {
				return false
			}
			conn.Close()
			return true
		})
	}
	return acmeServer{directory: "https://" + listen + "/dir", roots: certificate}
}
