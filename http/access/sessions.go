package access

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"net/netip"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

const (
	// SessionTime is how long a browser stays logged in.
	SessionTime = 12 * time.Hour
	// maxSessions bounds the sessions. Beyond it, the session that expires first is deleted.
	maxSessions = 1000
)

// Sessions are the browsers that have logged in. They are in memory: a restart of the server ends
// them. A session is only valid while the token file has the token that it was started with: Find
// looks the token up each time, so a reload of the file needs no list of the sessions of a token, and
// takes effect on scopes as well. Only hashes of cookies and secrets are kept. The methods may be
// called from any goroutine.
type Sessions struct {
	keys     *Keys
	mu       sync.Mutex
	byCookie map[[sha256.Size]byte]session // by the hash of the cookie
}

// session is a browser that has logged in. It refers to its token by hash and not by name, so that a
// new secret under the same name ends it.
type session struct {
	tokenHash [sha256.Size]byte // hash of the token's secret
	expires   time.Time
}

// NewSessions returns an empty set.
func NewSessions(keys *Keys) *Sessions {
	return &Sessions{keys: keys, byCookie: map[[sha256.Size]byte]session{}}
}

// Begin starts a session of SessionTime for the holder of a secret. It returns the random value of the
// session's cookie: 32 bytes as 43 characters of URL-safe base64. ok is false, and a session is not
// started, if the token file does not have the secret. Begin does not limit guesses: see Rate.
func (s *Sessions) Begin(secret []byte, now time.Time) (cookie string, who Caller, ok bool) {
	if who, ok = s.keys.FindSecret(secret); !ok {
		return "", who, false
	}
	var b [32]byte
	rand.Read(b[:]) // never fails
	cookie = base64.RawURLEncoding.EncodeToString(b[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.evictSession(now)
	s.byCookie[sha256.Sum256([]byte(cookie))] = session{tokenHash: sha256.Sum256(secret), expires: now.Add(SessionTime)}
	who.Session = true
	return cookie, who, true
}

// evictSession deletes expired sessions, and the one that expires first if all places are still taken.
func (s *Sessions) evictSession(now time.Time) {
	if len(s.byCookie) < maxSessions {
		return
	}
	var oldest [sha256.Size]byte
	var ends time.Time
	for id, one := range s.byCookie {
		if !now.Before(one.expires) {
			delete(s.byCookie, id)
		} else if ends.IsZero() || one.expires.Before(ends) {
			oldest, ends = id, one.expires
		}
	}
	if len(s.byCookie) >= maxSessions {
		delete(s.byCookie, oldest)
	}
}

// Find returns the caller that a cookie stands for. It looks up the hash of the cookie, so the
// time that it takes does not depend on the valid cookies.
func (s *Sessions) Find(cookie []byte, now time.Time) (Caller, bool) {
	id := sha256.Sum256(cookie)
	s.mu.Lock()
	one, ok := s.byCookie[id]
	s.mu.Unlock()
	if !ok {
		return Caller{}, false
	}
	tok := s.keys.current.Load().byHash(&one.tokenHash)
	if tok == nil || !now.Before(one.expires) {
		s.End(cookie)
		return Caller{}, false
	}
	return Caller{Principal: messages.Principal{Token: tok.name, Session: true}, Scopes: tok.scopes}, true
}

// End ends a session. An unknown cookie is ignored.
func (s *Sessions) End(cookie []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.byCookie, sha256.Sum256(cookie))
}

// Rate limits attempts: burst attempts at once, and one more per interval. Each address has its
// own limit; an IPv6 network of 64 bits counts as one address, because a client may use any address
// of its network. It is a leaky bucket: each attempt within the limit adds one to a count that falls
// by one per interval. Refused attempts do not count, so waiting always helps. The methods may be
// called from any goroutine.
type Rate struct {
	burst      int
	interval   time.Duration
	mu         sync.Mutex
	perAddress map[netip.Addr]countedAttempts
	lastPruned time.Time // when pruneAddresses last visited all addresses
}

// countedAttempts is how many attempts an address had used up at a time.
type countedAttempts struct {
	count float64
	at    time.Time
}

// maxAddresses bounds the addresses in memory. Beyond it all other addresses share one limit.
const maxAddresses = 10_000

// NewRate returns a limit of burst attempts at once and one per interval.
func NewRate(burst int, interval time.Duration) *Rate {
	return &Rate{burst: burst, interval: interval, perAddress: map[netip.Addr]countedAttempts{}}
}

// Allow counts an attempt at the time now, and tells whether it is within the limit. The zero address
// has a limit of its own, which unix sockets and the addresses beyond maxAddresses share.
func (r *Rate) Allow(from netip.Addr, now time.Time) bool {
	if from = from.Unmap().WithZone(""); from.Is6() {
		if network, err := from.Prefix(64); err == nil {
			from = network.Addr()
		}
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	u, known := r.perAddress[from]
	if !known && len(r.perAddress) >= maxAddresses {
		if r.pruneAddresses(now); len(r.perAddress) >= maxAddresses {
			from = netip.Addr{}
			u = r.perAddress[from]
		}
	}
	u.count = r.remainingAttempts(u, now)
	u.at = now
	allowed := u.count+1 <= float64(r.burst)
	if allowed {
		u.count++
	}
	r.perAddress[from] = u
	return allowed
}

// remainingAttempts returns how many of the earlier attempts still count at a time.
func (r *Rate) remainingAttempts(u countedAttempts, now time.Time) float64 {
	return max(0, u.count-float64(now.Sub(u.at))/float64(r.interval))
}

// pruneAddresses deletes addresses whose attempts no longer count, at most once per interval.
func (r *Rate) pruneAddresses(now time.Time) {
	if now.Sub(r.lastPruned) < r.interval {
		return
	}
	r.lastPruned = now
	for from, u := range r.perAddress {
		if r.remainingAttempts(u, now) == 0 {
			delete(r.perAddress, from)
		}
	}
}
