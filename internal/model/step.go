package model

import (
	"fmt"
	"strings"
)

// Step is an action of the model, with what it is about. Fields that do not matter are 0.
type Step struct {
	Kind      stepKind
	Node      uint8 // index
	Worker    uint8 // index
	Epoch     uint8
	Session   uint8
	Attempt   uint8
	Ticks     uint8
	Proposal  proposalKind // the one under way
	Committed bool         // that one is committed
}

// withKind returns the step with another kind.
func (s Step) withKind(kind stepKind) Step {
	s.Kind = kind
	return s
}

// withWorker returns the step about a worker.
func (s Step) withWorker(worker int) Step {
	s.Worker = uint8(worker)
	return s
}

type stepKind uint8

const (
	stepNone stepKind = iota
	stepElect
	stepStepDown
	stepCommit
	stepTakeOver
	stepFailEngine
	stepCrashNode
	stepRestartNode
	stepCatchUp

	stepRegister
	stepLead
	stepHear
	stepGrant
	stepPlaceGrant
	stepRevoke
	stepOrder
	stepEnd
	stepHearLoss
	stepLose
	stepAcknowledge

	stepTakeLead
	stepTakeOrder
	stepBegin
	stepFinish
	stepDropOrder
	stepLeaseEnds
	stepGuardEnds

	stepJoin
	stepKillWorker
	stepCutPower
	stepLoseWorker
	stepRestartWorker
	stepFreeze
	stepWake
	stepDeclare

	stepTick
	stepHeartbeat
	stepRenew
	stepLoseHeartbeat
	stepSendFrame

	stepCount
)

// stepTexts say what a step does; its fields stand in braces.
var stepTexts = [stepCount]string{
	stepElect:       "{node} is elected leader of term {epoch}",
	stepStepDown:    "{node} hears that it does not lead any more, and ends its engine",
	stepCommit:      "{node} commits {entry}",
	stepTakeOver:    "{node} takes over: its engine begins with the committed rows",
	stepFailEngine:  "the engine of {node} fails, while {node} leads on",
	stepCrashNode:   "{node} crashes",
	stepRestartNode: "{node} starts again",
	stepCatchUp:     "the replica of {node} catches up",

	stepRegister:    "{node} (epoch {epoch}) proposes to register this process of {worker}",
	stepLead:        "{node} (epoch {epoch}) opens session {session} with {worker}: Lead is sent",
	stepHear:        "{node} (epoch {epoch}) hears the first report of session {session} with {worker}",
	stepGrant:       "{node} (epoch {epoch}) proposes the grant of attempt {attempt}",
	stepPlaceGrant:  "{node} (epoch {epoch}) proposes the grant of attempt {attempt} to {worker}",
	stepRevoke:      "{node} (epoch {epoch}) knows that attempt {attempt} has not begun, and proposes its revocation",
	stepOrder:       "{node} (epoch {epoch}) orders attempt {attempt} on session {session} with {worker}",
	stepEnd:         "{node} (epoch {epoch}) hears from {worker} that attempt {attempt} has ended, and proposes the end",
	stepHearLoss:    "{node} (epoch {epoch}) hears from {worker} that attempt {attempt} is lost, and proposes the loss",
	stepLose:        "{node} (epoch {epoch}) gives up hope of attempt {attempt}, and proposes its loss",
	stepAcknowledge: "{node} (epoch {epoch}) acknowledges the end of attempt {attempt} to {worker}",

	stepTakeLead:  "{worker} notes epoch {epoch}, session {session}, and tells what it knows",
	stepTakeOrder: "{worker} takes the order of attempt {attempt} that was sent in epoch {epoch}, session {session}",
	stepBegin:     "{worker} starts the process of attempt {attempt}",
	stepFinish:    "attempt {attempt} ends by itself at {worker}",
	stepDropOrder: "the lease of {worker} is over: it drops the order of attempt {attempt}",
	stepLeaseEnds: "the lease of {worker} is over: it ends attempt {attempt}",
	stepGuardEnds: "the lease of {worker} is over: attempt {attempt} is ended without the worker's process",

	stepJoin:          "{worker} joins",
	stepKillWorker:    "the process of {worker} is killed; its tasks go on",
	stepCutPower:      "power failure of {worker}",
	stepLoseWorker:    "the machine of {worker} is lost with its disk",
	stepRestartWorker: "a successor of {worker} starts, and recovers what {worker} has left",
	stepFreeze:        "the process of {worker} is stopped; its tasks go on",
	stepWake:          "the process of {worker} continues",
	stepDeclare:       "the operator says that {worker} is dead",

	stepTick:          "a tick passes",
	stepHeartbeat:     "{node} (epoch {epoch}) gets a heartbeat of {worker}, and answers it",
	stepRenew:         "{worker} renews its lease by an answer of epoch {epoch}; its clock will be {ticks} ticks late",
	stepLoseHeartbeat: "the answer of epoch {epoch} to {worker} is lost",
	stepSendFrame:     "{node} (epoch {epoch}) sends a frame to {worker}",
}

// entryTexts name the entry under way.
var entryTexts = [...]string{
	proposalGrant: "the grant of an attempt", proposalEnd: "the end of an attempt", proposalLoss: "the loss of an attempt",
	proposalRevocation: "the revocation of an attempt", proposalRegistration: "the registration of a worker",
}

// String says in a sentence what happened.
func (s Step) String() string {
	text := stepTexts[s.Kind]
	switch {
	case s.Proposal == proposalNone || s.Kind == stepCommit:
	case s.Committed:
		text += "; the entry under way, {entry}, is committed"
	default:
		text += "; the entry under way, {entry}, is lost"
	}
	return strings.NewReplacer(
		"{node}", fmt.Sprintf("n%d", s.Node+1), "{worker}", fmt.Sprintf("w%d", s.Worker+1),
		"{epoch}", fmt.Sprint(s.Epoch), "{session}", fmt.Sprint(s.Session), "{attempt}", fmt.Sprint(s.Attempt),
		"{ticks}", fmt.Sprint(s.Ticks), "{entry}", entryTexts[s.Proposal],
	).Replace(text)
}
