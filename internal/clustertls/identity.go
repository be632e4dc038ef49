package clustertls

import (
	"crypto/x509"
	"errors"
	"fmt"
	"strings"
)

// Role is what a member of a cluster may do.
type Role string

const (
	// Node is the role of a server, which stores runs and serves requests.
	Node Role = "node"
	// Worker is the role of a worker on a machine without a node. It only runs tasks.
	Worker Role = "worker"
)

// domain ends every DNS name that states an identity.
const domain = "caravan.internal"

// dnsName is the DNS name in the certificate of each member with the role.
func (r Role) dnsName() string { return string(r) + "." + domain }

// Identity is the role and the name of one member.
type Identity struct {
	Role Role
	Name string // see CheckName
}

// dnsName is the DNS name that only the certificate of this member has.
func (i Identity) dnsName() string { return i.Name + "." + i.Role.dnsName() }

// String returns both: "node n1".
func (i Identity) String() string { return string(i.Role) + " " + i.Name }

// maxName is the longest label of a DNS name.
const maxName = 63

// CheckName returns what is wrong with the name of a member. It must be a label of a DNS name in lower
// case, so that two names never differ in case alone.
func CheckName(name string) error {
	valid := name != "" && len(name) <= maxName && name[0] != '-' && name[len(name)-1] != '-'
	for _, c := range []byte(name) {
		valid = valid && (c >= 'a' && c <= 'z' || c >= '0' && c <= '9' || c == '-')
	}
	if !valid {
		return fmt.Errorf("name %q: want 1 to %d lower-case letters, digits and '-', with '-' only in between", name, maxName)
	}
	return nil
}

// identityOf returns the one identity that a certificate states. A certificate with several is refused,
// and so is a wildcard, which would stand for all names.
func identityOf(c *x509.Certificate) (id Identity, err error) {
	var names []string
	for _, name := range c.DNSNames {
		if name = strings.ToLower(name); name == domain || strings.HasSuffix(name, "."+domain) {
			names = append(names, name)
		}
	}
	if len(names) == 0 {
		return id, errors.New("it states no role in a cluster")
	}
	for _, role := range []Role{Node, Worker} {
		for i, name := range names {
			label, found := strings.CutSuffix(name, "."+role.dnsName())
			if found && len(names) == 2 && names[1-i] == role.dnsName() && CheckName(label) == nil {
				return Identity{role, label}, nil
			}
		}
	}
	return id, fmt.Errorf("%s state neither a node nor a worker", strings.Join(names, ", "))
}
