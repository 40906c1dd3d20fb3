package bench

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"fmt"
	"net"
	"net/netip"
	"time"
)

const port5351 = 5351

// ask5351 sends a request until it is answered, as RFC 6886 section 3.1 wants.
func ask5351(ctx context.Context, conn net.Conn, request []byte, least int) ([]byte, error) {
	answer := make([]byte, 1100)
	for wait := 250 * time.Millisecond; ctx.Err() == nil; wait *= 2 {
		if _, err := conn.Write(request); err != nil {
			return nil, err
		}
		_ = conn.SetReadDeadline(time.Now().Add(wait))
		n, err := conn.Read(answer)
		if isTimeout(err) {
			continue
		}
		if err != nil {
			return nil, err
		}
		if n < least || answer[0] != request[0] || answer[1] != request[1]|0x80 || answer[2] != 0 || answer[3] != 0 {
			return nil, fmt.Errorf("the gateway answers %x", answer[:n])
		}
		return answer[:n], nil
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
			answer, err := ask5351(ctx, conn, []byte{0, 0}, 12)
			if err != nil {
				return outcome{}, err
			}
			addr := netip.AddrFrom4([4]byte(answer[8:12]))
			answer, err = ask5351(ctx, conn, natpmpMap(to.Port, uint32(lifetime.Seconds())), 16)
			if err != nil {
				return outcome{}, err
			}
			return outcome{External: netip.AddrPortFrom(addr, binary.BigEndian.Uint16(answer[10:12])), Way: "natpmp"}, nil
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
	ctx, cancel := context.WithTimeout(context.Background(), cleaning)
	defer cancel()
	_, _ = ask5351(ctx, conn, natpmpMap(to.Port, 0), 16)
}

// pcpMap is a MAP request without options (RFC 6887, sections 7.1 and 11.1).
func pcpMap(to target, nonce [12]byte, seconds uint32) []byte {
	b := []byte{2, 1, 0, 0}
	b = binary.BigEndian.AppendUint32(b, seconds)
	self := to.Self.As16()
	b = append(b, self[:]...)
	b = append(b, nonce[:]...)
	b = append(b, 17, 0, 0, 0) // UDP
	b = binary.BigEndian.AppendUint16(b, to.Port)
	b = binary.BigEndian.AppendUint16(b, to.Port)
	anywhere := netip.IPv4Unspecified().As16()
	return append(b, anywhere[:]...)
}

func rawPCP(to target) (attempt, error) {
	var nonce [12]byte
	_, _ = rand.Read(nonce[:])
	ask := func(ctx context.Context, seconds uint32) (outcome, error) {
		conn, err := dial5351(to)
		if err != nil {
			return outcome{}, err
		}
		defer conn.Close()
		answer, err := ask5351(ctx, conn, pcpMap(to, nonce, seconds), 60)
		if err != nil {
			return outcome{}, err
		}
		addr := netip.AddrFrom16([16]byte(answer[44:60])).Unmap()
		return outcome{External: netip.AddrPortFrom(addr, binary.BigEndian.Uint16(answer[42:44])), Way: "pcp"}, nil
	}
	return attempt{
		run: func(ctx context.Context) (outcome, error) { return ask(ctx, uint32(lifetime.Seconds())) },
		clean: func() {
			ctx, cancel := context.WithTimeout(context.Background(), cleaning)
			defer cancel()
			_, _ = ask(ctx, 0)
		},
	}, nil
}
