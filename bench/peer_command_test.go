package bench

import (
	"bytes"
	"context"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
)

// command measures a whole process. What it prints is understood by parse.
func command(parse func(output string) (outcome, error), clean func(), name string, args ...string) attempt {
	return attempt{
		run: func(ctx context.Context) (outcome, error) {
			var out, errs bytes.Buffer
			cmd := exec.CommandContext(ctx, name, args...)
			cmd.WaitDelay = grace / 2
			cmd.Env = append(os.Environ(), environment)
			cmd.Stdout, cmd.Stderr = &out, &errs
			if err := cmd.Run(); err != nil {
				said := strings.Join(strings.Fields(errs.String()+out.String()), " ")
				return outcome{}, fmt.Errorf("%w: %s", err, said)
			}
			return parse(out.String())
		},
		clean: clean,
	}
}

func goforwardTool(to target) (attempt, error) {
	return mapping(to, "map", "-g", to.Gateway.String()), nil
}

func goforwardCommand(to target) (attempt, error) { return mapping(to, "map"), nil }

func mapping(to target, args ...string) attempt {
	port := fmt.Sprintf("%d:%d/udp", to.Port, to.Port)
	parse := func(out string) (outcome, error) {
		external, err := netip.ParseAddrPort(strings.TrimSpace(out))
		return outcome{External: external}, err
	}
	clean := func() {
		args := append([]string{"unmap"}, args[1:]...)
		_, _ = command(parse, nil, to.Command, append(args, port)...).run(context.Background())
	}
	return command(parse, clean, to.Command, append(args, port, "-l", seconds())...)
}

func seconds() string { return strconv.Itoa(int(lifetime.Seconds())) }

func natpmpc(to target) (attempt, error) {
	port := strconv.Itoa(int(to.Port))
	parse := endpoint(regexp.MustCompile(`Public IP address : (\S+)`), regexp.MustCompile(`Mapped public port (\d+)`))
	clean := func() { rawNATPMPUnmap(to) }
	return command(parse, clean, "natpmpc", "-g", to.Gateway.String(), "-a", port, port, "udp", seconds()), nil
}

func upnpc(to target) (attempt, error) {
	port := strconv.Itoa(int(to.Port))
	both := regexp.MustCompile(`external (\S+):(\d+) UDP is redirected`)
	parse := func(out string) (outcome, error) {
		m := both.FindStringSubmatch(out)
		if m == nil {
			return outcome{}, fmt.Errorf("cannot read %q", out)
		}
		external, err := netip.ParseAddrPort(m[1] + ":" + m[2])
		return outcome{External: external, Way: "upnp"}, err
	}
	clean := func() { _ = rawUPnPUnmap(to) }
	return command(parse, clean, "upnpc", "-a", to.Self.String(), port, port, "udp", seconds()), nil
}

// endpoint reads address and port where a program prints them apart.
func endpoint(addr, port *regexp.Regexp) func(string) (outcome, error) {
	return func(out string) (outcome, error) {
		a, p := addr.FindStringSubmatch(out), port.FindStringSubmatch(out)
		if a == nil || p == nil {
			return outcome{}, fmt.Errorf("cannot read %q", out)
		}
		external, err := netip.ParseAddrPort(a[1] + ":" + p[1])
		return outcome{External: external}, err
	}
}
