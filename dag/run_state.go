package dag

// Config bounds what a run does by itself.
type Config struct {
	LostLimit uint32 // so many lost attempts are queued again, one more is ERRORED; 0 = 5
}

// ChunkTasks is the number of tasks in one chunk of a snapshot.
const ChunkTasks = 1024

// Run is the state machine of one run.
type Run struct{ plan *Plan }

func NewRun(p *Plan, c Config, now int64) *Run                     { return &Run{plan: p} }
func (r *Run) Init() []Effect                                      { return nil }
func (r *Run) Apply(e Event) []Effect                              { return nil }
func (r *Run) TakeRecords(dst []byte) []byte                       { return dst }
func (r *Run) Dirty() bool                                         { return false }
func (r *Run) Plan() *Plan                                         { return r.plan }
func (r *Run) State() RunState                                     { return RunQueued }
func (r *Run) Changes() []StateChange                              { return nil }
func (r *Run) Counts() (c [NumTaskStates]uint32)                   { return c }
func (r *Run) LastUpdate() int64                                   { return 0 }
func (r *Run) TaskState(task uint32) TaskState                     { return TaskQueued }
func (r *Run) Attempt(task uint32) uint32                          { return 0 }
func (r *Run) States(dst []TaskState, first, n uint32) []TaskState { return dst }
func (r *Run) Started(template int) bool                           { return false }
func (r *Run) Live(yield func(task, attempt uint32, s TaskState))  {}
func (r *Run) KillRequested() bool                                 { return false }
func (r *Run) TaskKillRequested(task uint32) bool                  { return false }
func (r *Run) Allowed(to RunState) error                           { return nil }
func (r *Run) Check()                                              {}
func (r *Run) AppendHeader(dst []byte) []byte                      { return dst }
func (r *Run) AppendChunk(dst []byte, chunk uint32) []byte         { return dst }
func (r *Run) DirtyChunks(max int) []uint32                        { return nil }
func (r *Run) ClearDirty(chunk uint32)                             {}
func Recover(p *Plan, c Config, header []byte, chunk func(i uint32) []byte, records [][]byte) (*Run, error) {
	return &Run{plan: p}, nil
}
