# A client of zkv in Ruby. It needs ffi-rzmq and msgpack:
#
#   apt-get install ruby-ffi-rzmq ruby-msgpack      # or: gem install ffi-rzmq msgpack
#   ruby client.rb [tcp://127.0.0.1:5757]

require "ffi-rzmq"
require "msgpack"
require "securerandom"

class Zkv
  CONTEXT = ZMQ::Context.new
  WAITS_MS = [250, 500, 1000, 2000, 4000] # for a reply, attempt by attempt

  def initialize(endpoint)
    @endpoint, @session, @seq = endpoint, SecureRandom.hex(16), 0
    write(op: "txn", then: []) # opens the session; may be done twice, since it does nothing
  end

  # A write happens once, however often it is sent.
  def write(request) = ask(request.merge(session: @session, seq: @seq += 1))

  # The reply; that of a failure has `error` and `message`.
  def ask(request)
    WAITS_MS.each do |wait|
      reply = exchange(request.to_msgpack, wait) and return reply
      request = request.merge(retry: true) if request.fetch(:seq, 1) > 1
    end
    raise "no reply: whether it was done is not known"
  end

  private

  def exchange(body, wait)
    @socket ||= connected_socket
    @socket.setsockopt(ZMQ::RCVTIMEO, wait)
    @socket.send_string(body)
    reply = +""
    return MessagePack.unpack(reply) if @socket.recv_string(reply) >= 0

    @socket.close # a REQ that waits for a reply cannot send: the next is a new one
    @socket = nil
  end

  def connected_socket
    CONTEXT.socket(ZMQ::REQ).tap { |it| it.setsockopt(ZMQ::LINGER, 0); it.connect(@endpoint) }
  end
end

zkv = Zkv.new(ARGV.fetch(0, "tcp://127.0.0.1:5757"))
put = zkv.write(op: "put", key: "user:1", value: { name: "Ada", langs: %w[en fr] })
puts "put user:1: version #{put["version"]}"
user = zkv.ask(op: "get", key: "user:1")["value"]
puts "get user:1: #{user["name"]} speaks #{user["langs"].join(", ")}"
bob = zkv.write(op: "put", key: "user:1", value: "Bob", if: { version: 0 })
puts "put user:1 if version 0: #{bob["error"]}, it has version #{bob["version"]}"
puts "incr visits: #{zkv.write(op: "incr", key: "visits")["value"]}"
nobody = zkv.ask(op: "get", key: "nobody")
puts "get nobody: #{nobody["error"]}, #{nobody["message"]}" unless nobody["ok"]
