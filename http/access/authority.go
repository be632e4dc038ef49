package access

import (
	"crypto/tls"
	"crypto/x509"
	"encoding/pem"
	"fmt"
	"regexp"

	"github.com/caravan-dag/caravan/internal/vfs"
)

// ReadAuthority reads the certificates of authorities, PEM. One that is malformed is an
// error: without it, fewer clients would get in than the file says.
func ReadAuthority(path string) (*x509.CertPool, error) {
	text, err := vfs.ReadGiven(path)
	if err != nil {
		return nil, fmt.Errorf("TLS authority: %w", err)
	}
	list, err := parseCertificates(text)
	if err != nil {
		return nil, fmt.Errorf("TLS authority %s: %w", path, err)
	}
	pool := x509.NewCertPool()
	for _, c := range list {
		pool.AddCert(c)
	}
	return pool, nil
}

// readPair reads a certificate, with those that link it to its authority, and its key.
func readPair(cert, key string) (tls.Certificate, error) {
	text, err := vfs.ReadGiven(cert)
	if err != nil {
		return tls.Certificate{}, err
	}
	secret, err := vfs.ReadGiven(key)
	if err != nil {
		return tls.Certificate{}, err
	}
	pair, err := tls.X509KeyPair(text, secret)
	if err != nil {
		return pair, err
	}
	_, err = parseCertificates(text)
	return pair, err
}

// marks are the lines that stand around a certificate, also those that no PEM reader
// takes for them.
var marks = regexp.MustCompile(`(?m)^.*(BEGIN|END)( [A-Z0-9]+)* CERTIFICATE.*$`)

// parseCertificates returns the certificates in text, of which there is one or more. What
// is no PEM is a comment, and blocks of another type are passed over.
func parseCertificates(text []byte) (list []*x509.Certificate, err error) {
	found := len(marks.FindAll(text, -1))
	for {
		var block *pem.Block
		if block, text = pem.Decode(text); block == nil {
			break
		}
		if block.Type != "CERTIFICATE" {
			if marks.MatchString("BEGIN " + block.Type) {
				return nil, fmt.Errorf("a %s follows certificate %d: want CERTIFICATE", block.Type, len(list))
			}
			continue
		}
		c, err := x509.ParseCertificate(block.Bytes)
		if err != nil {
			return nil, fmt.Errorf("certificate %d: %w", len(list)+1, err)
		}
		list = append(list, c)
	}
	switch {
	case len(list) == 0:
		return nil, fmt.Errorf("no PEM certificate in it")
	case found != 2*len(list):
		return nil, fmt.Errorf("a malformed PEM certificate: %d of them are whole, with %d lines BEGIN and END", len(list), found)
	}
	return list, nil
}
