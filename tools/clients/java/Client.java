// A client of zkv in Java. It needs jeromq and msgpack-jackson:
//
//   apt-get install default-jdk-headless libjeromq-java libmsgpack-java
//   java -cp '/usr/share/java/*' Client.java [tcp://127.0.0.1:5757]
//
// Debian's jeromq 0.3 speaks ZMTP 2, so the server has to be told: zkv-server --old-zmtp. From
// jeromq 0.4 on it needs not.

import com.fasterxml.jackson.databind.*;
import java.io.IOException;
import java.util.*;
import org.msgpack.jackson.dataformat.MessagePackFactory;
import org.zeromq.ZMQ;

class Client {
    static final int[] WAITS_MS = {250, 500, 1000, 2000, 4000}; // for a reply, attempt by attempt
    static final ObjectMapper MSGPACK = new ObjectMapper(new MessagePackFactory());
    static final ZMQ.Context CONTEXT = ZMQ.context(1);
    final String endpoint, session = UUID.randomUUID().toString();
    int seq = 0;

    Client(String endpoint) throws IOException {
        this.endpoint = endpoint;
        write(Map.of("op", "txn", "then", List.of())); // opens the session; may be done twice
    }

    /** A write happens once, however often it is sent. */
    JsonNode write(Map<String, ?> request) throws IOException {
        var numbered = new HashMap<String, Object>(request);
        numbered.putAll(Map.of("session", session, "seq", ++seq, "retry", false));
        return ask(numbered);
    }

    /** The reply; that of a failure has `error` and `message`. */
    JsonNode ask(Map<String, ?> request) throws IOException {
        var sent = new HashMap<String, Object>(request);
        for (int wait : WAITS_MS) {
            ZMQ.Socket socket = CONTEXT.socket(ZMQ.REQ); // one that waits for a reply cannot send:
            socket.setLinger(0);                         // each attempt has its own
            socket.setReceiveTimeOut(wait);
            socket.connect(endpoint);
            socket.send(MSGPACK.writeValueAsBytes(sent));
            byte[] reply = socket.recv();
            socket.close();
            if (reply != null) return MSGPACK.readTree(reply);
            if (sent.containsKey("retry")) sent.put("retry", seq > 1);
        }
        throw new IOException("no reply: whether it was done is not known");
    }

    public static void main(String[] args) throws IOException {
        var zkv = new Client(args.length > 0 ? args[0] : "tcp://127.0.0.1:5757");
        var ada = Map.of("name", "Ada", "langs", List.of("en", "fr"));
        var put = zkv.write(Map.of("op", "put", "key", "user:1", "value", ada));
        System.out.println("put user:1: version " + put.get("version"));
        var user = zkv.ask(Map.of("op", "get", "key", "user:1")).get("value");
        var langs = String.join(", ", MSGPACK.convertValue(user.get("langs"), String[].class));
        System.out.println("get user:1: " + user.get("name").asText() + " speaks " + langs);
        var absent = Map.of("version", 0);
        var bob = zkv.write(Map.of("op", "put", "key", "user:1", "value", "Bob", "if", absent));
        System.out.println("put user:1 if version 0: " + bob.get("error").asText()
            + ", it has version " + bob.get("version"));
        var visits = zkv.write(Map.of("op", "incr", "key", "visits"));
        System.out.println("incr visits: " + visits.get("value"));
        var nobody = zkv.ask(Map.of("op", "get", "key", "nobody"));
        System.out.println("get nobody: " + nobody.get("error").asText()
            + ", " + nobody.get("message").asText());
    }
}
