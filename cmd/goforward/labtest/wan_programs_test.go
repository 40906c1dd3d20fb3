package labtest

import (
	"context"
	"encoding/hex"
	"fmt"
	"io"
	"log"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	"github.com/natforward/goforward/internal/lab"
)

// wanAddrs returns two IPv4 addresses and two IPv6 addresses of the wan host. It adds the second
// ones; the first ones remain the source of its connections. The home must have Router.IPv6.
func wanAddrs(t *testing.T, home *lab.HomeNet) (first, second, first6, second6 netip.Addr) {
	t.Helper()
	first, first6 = home.Wan.Addr(), netip.MustParseAddr("2a0c:7777:2::2")
	second, second6 = first.Next(), first6.Next()
	home.Wan.Exec(t, "ip", "addr", "replace", second.String()+"/24", "dev", "eth0")
	home.Wan.Exec(t, "ip", "addr", "replace", second6.String()+"/64", "dev", "eth0", "nodad", "preferred_lft", "0")
	return first, second, first6, second6
}

// bindingRequest is a STUN request for the source address, without attributes.
var bindingRequest, _ = hex.DecodeString("000100002112a442" + "676f666f7277617264313233")

// startCoturn starts the STUN server of coturn in the host. It listens on ports 3478 and 3479 of
// all addresses. RFC 5780 needs two of a family.
func startCoturn(t *testing.T, host *lab.Host, addrs ...netip.Addr) {
	t.Helper()
	program, dir := unpackedProgram(t, "coturn", "turnserver"), t.TempDir()
	args := []string{
		"-n", "--stun-only", "--no-cli", "--no-tls", "--no-dtls", "--log-file", "stdout",
		"--pidfile", filepath.Join(dir, "pid"), "--userdb", filepath.Join(dir, "database"),
	}
	for _, addr := range addrs {
		args = append(args, "-L", addr.String())
	}
	startProgram(t, host, nil, program, args...)
	for _, addr := range addrs {
		for _, port := range []uint16{3478, 3479} {
			server := netip.AddrPortFrom(addr, port)
			waitUntil(t, maxWait, "no STUN server at "+server.String(), func() bool {
				reply, err := host.SendUDP(t, server, string(bindingRequest))
				return err == nil && strings.HasPrefix(reply, "\x01\x01")
			})
		}
	}
}

// sshServer is a running sshd, and what its clients need.
type sshServer struct {
	config string // a file for ssh -F, with the hosts "wanhost" and, over IPv6, "wanhost6"
	path   string // a directory for PATH, with a program ssh that uses config
	bin    string // a directory that is in the PATH of the commands; it is empty
}

// canRunSSHD reports whether sshd can run here. In the user namespace of an unprivileged user, it
// may not drop its groups.
func canRunSSHD() bool {
	setgroups, err := os.ReadFile("/proc/self/setgroups")
	return err == nil && strings.TrimSpace(string(setgroups)) == "allow"
}

// startSSHD starts sshd on port 22 of the host. Clients may log in as root, with a key. Commands run
// in this shell. The address over IPv6 may be the zero Addr.
func startSSHD(t *testing.T, host *lab.Host, six netip.Addr, shell string) sshServer {
	t.Helper()
	if !canRunSSHD() {
		t.Skip("LAB SKIPPED: sshd needs the permission to drop its groups, which an unprivileged user has not")
	}
	program, client := unpackedProgram(t, "sshd", "sshd"), unpackedProgram(t, "ssh", "ssh")
	dir := t.TempDir()
	s := sshServer{config: filepath.Join(dir, "config"), path: filepath.Join(dir, "path"), bin: filepath.Join(dir, "bin")}
	for _, key := range []string{"hostkey", "userkey"} {
		if out, err := exec.CommandContext(t.Context(), "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "", "-f", filepath.Join(dir, key)).CombinedOutput(); err != nil {
			t.Fatalf("ssh-keygen: %v: %s", err, out)
		}
	}
	hostKey, err := os.ReadFile(filepath.Join(dir, "hostkey.pub"))
	if err != nil {
		t.Fatal(err)
	}
	write := func(name string, mode os.FileMode, format string, args ...any) {
		t.Helper()
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, fmt.Appendf(nil, format, args...), mode); err != nil {
			t.Fatal(err)
		}
	}
	write("known_hosts", 0o600, "wanhost %s", hostKey)
	write("sshd_config", 0o600, `ListenAddress 0.0.0.0
ListenAddress ::
HostKey %[1]s/hostkey
PidFile none
AuthorizedKeysFile %[1]s/userkey.pub
StrictModes no
PermitRootLogin prohibit-password
PasswordAuthentication no
KbdInteractiveAuthentication no
UsePAM no
UseDNS no
PrintMotd no
PrintLastLog no
MaxStartups 100
SetEnv PATH=%[1]s/bin:/usr/bin:/bin:/usr/sbin:/sbin
`, dir)
	// sshd requires a user sshd, and root may be locked. The wrapper of the program shows it other
	// lists of users, and another directory for its logs.
	write("passwd", 0o644, "root:x:0:0:root:%s/home:%s\nsshd:x:65533:65534::/run/sshd:/usr/sbin/nologin\n", dir, shell)
	write("shadow", 0o600, "root:*:19000:0:99999:7:::\n")
	write("home/.hushlogin", 0o644, "")
	write("bin/.keep", 0o644, "")
	hosts := map[string]netip.Addr{"wanhost": host.Addr()}
	if six.IsValid() {
		hosts["wanhost6"] = six
	}
	var config strings.Builder
	for name, addr := range hosts {
		fmt.Fprintf(&config, `Host %s
	HostName %v
	HostKeyAlias wanhost
	User root
	IdentityFile %[3]s/userkey
	IdentitiesOnly yes
	UserKnownHostsFile %[3]s/known_hosts
	GlobalKnownHostsFile none
	StrictHostKeyChecking yes
`, name, addr, dir)
	}
	write("config", 0o600, "%s", config.String())
	write("path/ssh", 0o755, "#!/bin/sh\nexec %s -F %s \"$@\"\n", client, s.config)
	startProgram(t, host, nil, "unshare", "--mount", "sh", "-ec", `
		mount --bind "$0/passwd" /etc/passwd
		mount --bind "$0/shadow" /etc/shadow
		mount -t tmpfs none /var/log
		mkdir -p /run/sshd
		exec "$@"`, dir, program, "-D", "-e", "-f", filepath.Join(dir, "sshd_config"))
	waitForServer(t, host, host.Addr(), 22)
	return s
}

// startProxy starts nginx in the host, as a reverse proxy for the server at an address. It listens
// on these addresses. It appends the address of the client to X-Forwarded-For.
func startProxy(t *testing.T, host *lab.Host, server netip.AddrPort, directives string, addresses ...netip.AddrPort) {
	t.Helper()
	program, dir := unpackedProgram(t, "nginx", "nginx"), t.TempDir()
	var listen strings.Builder
	for _, address := range addresses {
		fmt.Fprintf(&listen, "listen %v; ", address)
	}
	config := filepath.Join(dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, `user root;
daemon off;
master_process off;
pid %[1]s/pid;
events {}
http {
	access_log off;
	client_body_temp_path %[1]s/body;
	proxy_temp_path %[1]s/proxy;
	fastcgi_temp_path %[1]s/fastcgi;
	uwsgi_temp_path %[1]s/uwsgi;
	scgi_temp_path %[1]s/scgi;
	server {
		%[2]s
		location / {
			proxy_pass http://%[3]v;
			proxy_set_header X-Forwarded-For $proxy_add_x_forwarded_for;
			%[4]s
		}
	}
}
`, dir, &listen, server, directives), 0o600); err != nil {
		t.Fatal(err)
	}
	startProgram(t, host, nil, program, "-p", dir, "-e", "stderr", "-c", config)
	for _, address := range addresses {
		waitForServer(t, host, address.Addr(), address.Port())
	}
}

// waitForServer waits until a connection inside the host to its address is accepted.
func waitForServer(t *testing.T, host *lab.Host, addr netip.Addr, port uint16) {
	t.Helper()
	server := netip.AddrPortFrom(addr, port).String()
	waitUntil(t, maxWait, "no server at "+server, func() bool {
		ctx, cancel := context.WithTimeout(t.Context(), maxWait)
		defer cancel()
		conn, err := host.Dial(ctx, "tcp", server)
		if err != nil {
			return false
		}
		_ = conn.Close()
		return true
	})
}

// TestWanPrograms checks that the programs on the wan host serve the host in the home.
func TestWanPrograms(t *testing.T) {
	t.Parallel()
	lab.Scenario(t, "lab: coturn, sshd and nginx on the wan host")
	home := lab.Home(t, lab.Router{IPv6: true})
	first, second, first6, second6 := wanAddrs(t, home)

	startCoturn(t, home.Wan, first, second, first6, second6)
	for _, addr := range []netip.Addr{first, second, first6, second6} {
		if reply, err := home.Lan.SendUDP(t, netip.AddrPortFrom(addr, 3478), string(bindingRequest)); err != nil || !strings.HasPrefix(reply, "\x01\x01") {
			t.Errorf("STUN server %v: %q, %v", addr, reply, err)
		}
	}

	web := startHTTP(t, home.Wan, netip.MustParseAddrPort("127.0.0.1:8000"), func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.WriteString(w, r.Header.Get("X-Forwarded-For"))
	})
	startProxy(t, home.Wan, web, "", netip.AddrPortFrom(first, 80), netip.AddrPortFrom(first6, 80))
	for addr, want := range map[netip.Addr]netip.Addr{first: home.External, first6: home.Lan6} {
		if seen := home.Lan.Exec(t, "curl", "-sS", "--max-time", "10", "-H", "X-Forwarded-For: 8.8.8.8", "http://"+netip.AddrPortFrom(addr, 80).String()); seen != "8.8.8.8, "+want.String() {
			t.Errorf("proxy %v: the server sees %q", addr, seen)
		}
	}

	s := startSSHD(t, home.Wan, first6, "/bin/sh")
	for host, addr := range map[string]netip.Addr{"wanhost": first, "wanhost6": first6} {
		for _, args := range [][]string{
			{"ssh", "-F", s.config, host, `echo "$SSH_CONNECTION"`},
			{"env", "PATH=" + s.path + ":" + os.Getenv("PATH"), "ssh", host, `echo "$SSH_CONNECTION"`},
		} {
			out := home.Lan.Exec(t, args[0], args[1:]...)
			if fields := strings.Fields(out); len(fields) != 4 || fields[2] != addr.String() {
				t.Errorf("ssh %s prints %q", host, out)
			}
		}
	}
}

// startHTTP serves HTTP in the host, from this process, and returns the address.
func startHTTP(t *testing.T, host *lab.Host, address netip.AddrPort, handler http.HandlerFunc) netip.AddrPort {
	t.Helper()
	ln, err := host.Listen("tcp", address.String())
	if err != nil {
		t.Fatal(err)
	}
	server := &http.Server{Handler: handler, ErrorLog: log.New(io.Discard, "", 0), ReadHeaderTimeout: maxWait}
	var serving sync.WaitGroup
	serving.Go(func() { _ = server.Serve(ln) })
	t.Cleanup(func() {
		_ = server.Close()
		serving.Wait()
	})
	return netip.MustParseAddrPort(ln.Addr().String())
}
