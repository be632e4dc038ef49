package access

import (
	"crypto/rand"
	"crypto/sha256"
	"encoding/base64"
	"sync"
	"time"

	"github.com/caravan-dag/caravan/messages"
)

const (
	// SessionTime is how long a browser stays logged in.
	SessionTime = 12 * time.Hour
	// maxSessions bounds the sessions; beyond it the one that ends first gives way.
	maxSessions = 1000
)

// Sessions are the browsers that have logged in. They live in memory: a restart of
// the server ends them. A session is good only while the token file has the token
// that it was begun with.
type Sessions struct {
	keys *Keys
	mu   sync.Mutex
	open map[[sha256.Size]byte]session // by the hash of the cookie
}

type session struct {
	token [sha256.Size]byte // hash of the token's secret
	ends  time.Time
}

// NewSessions returns no sessions yet.
func NewSessions(keys *Keys) *Sessions {
	return &Sessions{keys: keys, open: map[[sha256.Size]byte]session{}}
}

// Begin begins a session for the holder of a secret and returns the value of its
// cookie, which is random.
func (s *Sessions) Begin(secret []byte, now time.Time) (cookie string, who Caller, ok bool) {
	if who, ok = s.keys.Secret(secret); !ok {
		return "", who, false
	}
	var b [32]byte
	rand.Read(b[:]) // never fails
	cookie = base64.RawURLEncoding.EncodeToString(b[:])
	s.mu.Lock()
	defer s.mu.Unlock()
	s.makeRoom(now)
	s.open[sha256.Sum256([]byte(cookie))] = session{token: sha256.Sum256(secret), ends: now.Add(SessionTime)}
	who.Session = true
	return cookie, who, true
}

// makeRoom forgets sessions that are over, and the next to end if all are full.
func (s *Sessions) makeRoom(now time.Time) {
	if len(s.open) < maxSessions {
		return
	}
	var oldest [sha256.Size]byte
	var ends time.Time
	for id, one := range s.open {
		if !now.Before(one.ends) {
			delete(s.open, id)
		} else if ends.IsZero() || one.ends.Before(ends) {
			oldest, ends = id, one.ends
		}
	}
	if len(s.open) >= maxSessions {
		delete(s.open, oldest)
	}
}

// Find returns whose session a cookie is. It looks the hash of the cookie up, so the
// time that it takes says nothing of the cookies that are good.
func (s *Sessions) Find(cookie []byte, now time.Time) (Caller, bool) {
	id := sha256.Sum256(cookie)
	s.mu.Lock()
	one, ok := s.open[id]
	s.mu.Unlock()
	if !ok {
		return Caller{}, false
	}
	tok := s.keys.current.Load().find(&one.token)
	if tok == nil || !now.Before(one.ends) {
		s.End(cookie)
		return Caller{}, false
	}
	return Caller{Principal: messages.Principal{Token: tok.name, Session: true}, Scopes: tok.scopes}, true
}

// End ends a session.
func (s *Sessions) End(cookie []byte) {
	s.mu.Lock()
	defer s.mu.Unlock()
	delete(s.open, sha256.Sum256(cookie))
}
