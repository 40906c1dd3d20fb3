// A QUIC echo server that is reachable from the internet, until Ctrl-C.
package main

import (
	"context"
	"crypto/ed25519"
	"crypto/rand"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"fmt"
	"io"
	"log"
	"math/big"
	"os"
	"os/signal"
	"sync"
	"syscall"

	"github.com/quic-go/quic-go"

	"github.com/natforward/goforward/forward"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	if err := run(ctx, os.Stdout); err != nil && ctx.Err() == nil {
		log.Fatal(err)
	}
}

// run serves until the context ends. It prints the external address and the SHA-256 of the
// server's certificate. Clients compare the SHA-256, because no authority signs the
// certificate.
func run(ctx context.Context, out io.Writer) error {
	cert, err := newCertificate()
	if err != nil {
		return err
	}
	pc, err := forward.ListenPacket("udp4", ":4433")
	if err != nil {
		return err
	}
	defer func() { _ = pc.Close() }() // removes the mapping
	transport := quic.Transport{Conn: pc}
	defer func() { _ = transport.Close() }() // does not close pc
	ln, err := transport.Listen(&tls.Config{Certificates: []tls.Certificate{cert}, NextProtos: []string{"echo"}}, nil)
	if err != nil {
		return err
	}
	if err := pc.Mapping().Wait(ctx); err != nil {
		return err
	}
	_, _ = fmt.Fprintf(out, "%v %x\n", pc.External(), sha256.Sum256(cert.Certificate[0]))
	var conns sync.WaitGroup
	defer conns.Wait()
	for {
		conn, err := ln.Accept(ctx)
		if err != nil {
			return err
		}
		conns.Go(func() { echo(ctx, conn) })
	}
}

// echo sends the data of each stream back, until the client closes the connection or the
// context ends.
func echo(ctx context.Context, conn *quic.Conn) {
	var streams sync.WaitGroup
	defer streams.Wait()
	defer func() { _ = conn.CloseWithError(0, "") }() // Transport.Close does not notify the client
	for {
		stream, err := conn.AcceptStream(ctx)
		if err != nil {
			return
		}
		streams.Go(func() {
			_, _ = io.Copy(stream, stream)
			_ = stream.Close()
		})
	}
}

// newCertificate returns a self-signed certificate.
func newCertificate() (tls.Certificate, error) {
	public, private, err := ed25519.GenerateKey(nil)
	if err != nil {
		return tls.Certificate{}, err
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, public, private)
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: private}, err
}
