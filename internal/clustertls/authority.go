package clustertls

import (
	"crypto"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/hex"
	"encoding/pem"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/caravan-dag/caravan/http/access"
	"github.com/caravan-dag/caravan/internal/vfs"
)

const (
	authorityFile    = "ca.pem"
	authorityKeyFile = "ca-key.pem"
)

// Lifetimes unless the user wants others. The package comment has the reasons.
const (
	AuthorityLifetime   = 10 * 365 * 24 * time.Hour
	CertificateLifetime = 365 * 24 * time.Hour
)

// backdating is how long a certificate is valid before it is made.
const backdating = 24 * time.Hour

// CreateAuthority creates ca.pem and ca-key.pem in dir, which it creates if it does not exist, and
// returns the end of the authority's life. It refuses a folder that has one of the files: another
// authority in its place would cut off all members.
func CreateAuthority(dir string, lifetime time.Duration, now time.Time) (end time.Time, err error) {
	for _, name := range []string{authorityKeyFile, authorityFile} {
		path := filepath.Join(dir, name)
		if _, err := os.Lstat(path); err == nil {
			return end, fmt.Errorf("%s exists already: an authority is made once for a cluster", path)
		} else if !errors.Is(err, fs.ErrNotExist) {
			return end, err
		}
	}
	key, keyText, err := newKey()
	if err != nil {
		return end, err
	}
	// The digits keep the authorities of several clusters apart in the errors of other tools.
	var digits [4]byte
	rand.Read(digits[:])
	template := &x509.Certificate{
		Subject:   pkix.Name{CommonName: "caravan cluster authority " + hex.EncodeToString(digits[:])},
		NotBefore: now.Add(-backdating), NotAfter: now.Add(lifetime),
		IsCA: true, BasicConstraintsValid: true, MaxPathLenZero: true, // it signs no other authority
		KeyUsage: x509.KeyUsageCertSign | x509.KeyUsageCRLSign,
		// A program that trusts this authority accepts it for the names of members alone.
		PermittedDNSDomains: []string{domain}, PermittedDNSDomainsCritical: true,
	}
	der, err := x509.CreateCertificate(rand.Reader, template, template, key.Public(), key)
	if err != nil {
		return end, fmt.Errorf("authority: %w", err)
	}
	if err := makeFolder(dir); err != nil {
		return end, err
	}
	// The key comes first: of two commands at a time the second one fails before it has written anything.
	if err := createFile(filepath.Join(dir, authorityKeyFile), keyText, privateMode); err != nil {
		return end, err
	}
	return template.NotAfter, createFile(filepath.Join(dir, authorityFile), encodeCertificate(der), publicMode)
}

// Authority signs the certificates of the members of one cluster.
type Authority struct {
	path string // of ca.pem, for errors
	text []byte // content of ca.pem
	cert *x509.Certificate
	key  crypto.Signer
}

// OpenAuthority reads ca.pem and ca-key.pem in dir. It need not be one of CreateAuthority: any
// certificate that may sign others will do.
func OpenAuthority(dir string) (*Authority, error) {
	a := &Authority{path: filepath.Join(dir, authorityFile)}
	keyPath := filepath.Join(dir, authorityKeyFile)
	var err error
	if a.text, err = vfs.ReadUserFile(a.path); err != nil {
		return nil, fmt.Errorf("authority: %w", err)
	}
	list, err := access.ParseCertificates(a.text)
	if err != nil {
		return nil, fmt.Errorf("authority %s: %w", a.path, err)
	}
	a.cert = list[0]
	keyText, err := access.ReadPrivateFile(keyPath)
	if err != nil {
		return nil, fmt.Errorf("key of the authority: %w", err)
	}
	pair, err := tls.X509KeyPair(a.text, keyText)
	if err != nil {
		return nil, fmt.Errorf("key %s of the authority %s: %w", keyPath, a.path, err)
	}
	signer, ok := pair.PrivateKey.(crypto.Signer)
	if !ok || !a.cert.IsCA {
		return nil, fmt.Errorf("authority %s: its first certificate does not belong to an authority", a.path)
	}
	a.key = signer
	return a, nil
}

// Issue writes a certificate for a member, with a new key and ca.pem, into dir, which it creates if it
// does not exist. It returns the end of the certificate's life, which is at most that of the authority.
//
// A folder that has files of the same member is renewed; a running member takes the new files. Files of
// another member, or of an authority that the member does not trust, are errors, and stay as they are.
func (a *Authority) Issue(dir string, id Identity, lifetime time.Duration, now time.Time) (end time.Time, err error) {
	if err := CheckName(id.Name); err != nil {
		return end, err
	}
	if now.After(a.cert.NotAfter) {
		return end, fmt.Errorf("authority %s: expired at %s", a.path, formatTime(a.cert.NotAfter))
	}
	trusted, err := a.checkRenewal(dir, id)
	if err != nil {
		return end, err
	}
	end = now.Add(lifetime)
	if end.After(a.cert.NotAfter) {
		end = a.cert.NotAfter
	}
	key, keyText, err := newKey()
	if err != nil {
		return end, err
	}
	der, err := x509.CreateCertificate(rand.Reader, &x509.Certificate{
		Subject:   pkix.Name{CommonName: "caravan " + id.String()},
		NotBefore: now.Add(-backdating), NotAfter: end,
		BasicConstraintsValid: true,
		KeyUsage:              x509.KeyUsageDigitalSignature,
		ExtKeyUsage:           []x509.ExtKeyUsage{x509.ExtKeyUsageServerAuth, x509.ExtKeyUsageClientAuth},
		DNSNames:              []string{id.dnsName(), id.Role.dnsName()},
	}, a.cert, key.Public(), a.key)
	if err != nil {
		return end, fmt.Errorf("certificate of %s: %w", id, err)
	}
	if err := makeFolder(dir); err != nil {
		return end, err
	}
	cert, keyPath, ca := memberFiles(dir, id.Role)
	// A member that reads between these writes finds a key that is not its certificate's, and goes on
	// with its old files until the last one is there.
	if !trusted {
		if err := replaceFile(ca, a.text, publicMode); err != nil {
			return end, err
		}
	}
	if err := replaceFile(keyPath, keyText, privateMode); err != nil {
		return end, err
	}
	return end, replaceFile(cert, encodeCertificate(der), publicMode)
}

// checkRenewal checks the files of a member that are in dir. trusted means that its ca.pem is there and
// has the authority's certificate. That file may have others, which the user wants to keep.
func (a *Authority) checkRenewal(dir string, id Identity) (trusted bool, err error) {
	cert, _, ca := memberFiles(dir, id.Role)
	former, err := readCertificates(cert)
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return false, err
	default:
		if owner, err := identityOf(former[0]); err != nil {
			return false, fmt.Errorf("certificate %s: %w", cert, err)
		} else if owner != id {
			return false, fmt.Errorf("%s is the certificate of %s: give %s a folder of its own", cert, owner, id)
		}
	}
	known, err := readCertificates(ca)
	if errors.Is(err, fs.ErrNotExist) {
		return false, nil
	}
	if err != nil {
		return false, err
	}
	for _, c := range known {
		if c.Equal(a.cert) {
			return true, nil
		}
	}
	return false, fmt.Errorf("%s has another authority than %s: the certificate of %s would not be trusted", ca, a.path, id)
}

// newKey returns a key, and its text in PEM.
func newKey() (*ecdsa.PrivateKey, []byte, error) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		return nil, nil, fmt.Errorf("key: %w", err)
	}
	der, err := x509.MarshalPKCS8PrivateKey(key)
	if err != nil {
		return nil, nil, fmt.Errorf("key: %w", err)
	}
	return key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: der}), nil
}

func encodeCertificate(der []byte) []byte {
	return pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
}

// formatTime formats a moment of a certificate, whose resolution is a second.
func formatTime(t time.Time) string { return t.UTC().Format(time.RFC3339) }
