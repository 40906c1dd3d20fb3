package cli

import (
	"crypto/tls"
	"fmt"
	"os"
	"sync"
	"time"
)

// certCheckInterval is how long a certificate is used before its files are examined again.
const certCheckInterval = 10 * time.Second

// certificate is a certificate for TLS. It is read again when its files change.
type certificate struct {
	certFile, keyFile string
	report            func(error) // a changed file cannot be used

	mu      sync.Mutex
	current *tls.Certificate
	files   [2]os.FileInfo // as they were examined last
	failure string         // of the last examination; "": none
	next    time.Time      // time of the next examination
}

// newCertificate reads a certificate.
func newCertificate(certFile, keyFile string, report func(error)) (*certificate, error) {
	c := &certificate{certFile: certFile, keyFile: keyFile, report: report}
	files, err := c.stat()
	if err != nil {
		return nil, err
	}
	pair, err := tls.LoadX509KeyPair(certFile, keyFile)
	if err != nil {
		return nil, err
	}
	c.current, c.files, c.next = &pair, files, time.Now().Add(certCheckInterval)
	return c, nil
}

// stat examines the files.
func (c *certificate) stat() (files [2]os.FileInfo, err error) {
	for i, name := range []string{c.certFile, c.keyFile} {
		if files[i], err = os.Stat(name); err != nil {
			return files, err
		}
		if !files[i].Mode().IsRegular() {
			return files, fmt.Errorf("%s is not a regular file", name)
		}
	}
	return files, nil
}

// get implements tls.Config.GetCertificate. If the files have changed, it reads them. If that fails, the
// certificate stays, and the failure is reported once.
func (c *certificate) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	c.mu.Lock()
	current, before, now := c.current, c.files, time.Now()
	isDue := !now.Before(c.next)
	if isDue {
		c.next = now.Add(certCheckInterval) // no other connection examines the files in this time
	}
	c.mu.Unlock()
	if !isDue {
		return current, nil
	}
	files, err := c.stat()
	if err == nil && isSameFile(before[0], files[0]) && isSameFile(before[1], files[1]) {
		return current, nil
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.LoadX509KeyPair(c.certFile, c.keyFile)
	}
	failure := ""
	if err != nil {
		failure = err.Error()
	}
	c.mu.Lock()
	isNew := failure != c.failure
	c.files, c.failure = files, failure
	if err == nil {
		c.current = &pair
	}
	current = c.current
	c.mu.Unlock()
	if err != nil && isNew {
		c.report(err)
	}
	return current, nil
}

// isSameFile reports whether a file has not changed.
func isSameFile(a, b os.FileInfo) bool {
	return a != nil && b != nil && os.SameFile(a, b) && a.ModTime().Equal(b.ModTime()) && a.Size() == b.Size()
}
