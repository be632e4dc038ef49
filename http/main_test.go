package http

import (
	"testing"

	"github.com/caravan-dag/caravan/internal/testenv"
)

func TestMain(m *testing.M) { testenv.VerifyNoLeaks(m) }
